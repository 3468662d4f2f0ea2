"""What a score stream has sent and no answer has confirmed, so that another stream can go on there.

A stream commits whole words or pieces, in order, so a session's position says how far it came, also
where the answers that would have said so were lost. Which bytes of text these tokens are, the
server's own tokenizer tells. No waiting is done here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from client.errors import Aborted, DeqlmError, Internal, InvalidArgument, Unavailable, Unknown
from client.options import Budget, Flush, StreamPiece
from client.resources import Token

LOOKS: Final = 60
"""Looks at a session that the lost stream still holds, or at a server that is not back."""


def is_lost(error: DeqlmError) -> bool:
    """Whether an error tells of a lost connection, or of a session that a lost stream holds."""
    is_cut = isinstance(error, Internal | Unknown) and not error.details.reason
    return is_cut or isinstance(error, Unavailable | Aborted)


def check_resumable(budget: Budget | None) -> None:
    """Raises InvalidArgument: a budget ends answers in the midst of words."""
    if budget is not None:
        raise InvalidArgument("resume must be False with a budget, which may cut a word in two")


class Sent:
    """The pieces that may have to be sent again; `begin` counts those that need not."""

    def __init__(self, position: int) -> None:
        """Begin with nothing sent.

        Args:
            position: Tokens that the session holds.
        """
        self._pieces: deque[StreamPiece] = deque()
        self.is_text: bool | None = None
        self._bytes = 0  # of this stream's text before the first piece
        self.begin = 0
        self.position = position

    @property
    def end(self) -> int:
        """Pieces there have been."""
        return self.begin + len(self._pieces)

    def piece(self, index: int) -> StreamPiece:
        """A piece that is still there."""
        return self._pieces[index - self.begin]

    def add(self, piece: StreamPiece) -> None:
        """Take a piece that is about to be sent. Raises InvalidArgument."""
        if not isinstance(piece, Flush):
            if self.is_text is None:
                self.is_text = isinstance(piece, str)
            if self.is_text != isinstance(piece, str):
                raise InvalidArgument("pieces must be all text or all token ids with resume")
        self._pieces.append(piece)

    def confirm(self, *, position: int, text_bytes: int) -> None:
        """Note what an answer says is committed."""
        if not self.is_text:
            self._drop_ids(position - self.position)
        self.position = position
        while self.is_text and self._pieces:
            size = _size(self._pieces[0])
            if self._bytes + size > text_bytes or (size == 0 and self._bytes == text_bytes):
                break
            self._bytes += size
            self._drop()

    def begin_anew(self, text_bytes: int) -> None:
        """Have the next stream begin behind the confirmed bytes of this one. Raises ValueError."""
        self._cut(text_bytes - self._bytes)
        self._bytes = 0

    def text(self) -> str | None:
        """The text up to the next flush, none of it confirmed; None where there is none."""
        parts: list[str] = []
        for piece in self._pieces:
            if isinstance(piece, Flush):
                return "".join(parts)
            parts.append(str(piece))
        return "".join(parts) if parts else None

    def skip(self, position: int, tokens: Sequence[Token] | None) -> bool:
        """Leave out what is committed without an answer, or a part of it.

        Args:
            position: Tokens that the session holds.
            tokens: Of `text()`; None for a stream of token ids.

        Returns:
            Whether that was all. Raises ValueError where it cannot be.
        """
        lost = position - self.position
        if lost < 0:
            raise ValueError("the session is not as far as it was")
        if lost and not self._pieces:
            raise ValueError("the session holds tokens that this stream did not send")
        if tokens is None:
            self._drop_ids(lost)
            self.position = position
            return True
        whole = self.text() or ""
        taken = min(lost, len(tokens))
        end = tokens[taken - 1].byte_end if taken else 0
        data = whole.encode("utf-8")
        is_behind = taken == len(tokens) and not data[end:].strip()
        self._cut(len(data) if is_behind else end)
        if is_behind and self._pieces:  # the flush is done as well
            self._drop()
        self.position += taken
        if taken == 0 and lost and not is_behind:
            raise ValueError("the session holds tokens that this stream did not send")
        return self.position == position

    def _drop_ids(self, count: int) -> None:
        while count > 0 and self._pieces:
            piece = self._pieces[0]
            size = 0 if isinstance(piece, Flush) else len(piece)
            if size > count:
                self._pieces[0] = piece[count:]  # type: ignore[index]
                return
            count -= size
            self._drop()
        if count:
            raise ValueError("the session holds tokens that this stream did not send")

    def _cut(self, size: int) -> None:
        """Drop bytes of text at the front."""
        while size > 0 and self._pieces:
            data = str(self._pieces[0]).encode("utf-8")
            if isinstance(self._pieces[0], Flush):
                data = b""
            if len(data) > size:
                self._pieces[0] = data[size:].decode("utf-8")
                return
            size -= len(data)
            self._drop()

    def _drop(self) -> None:
        self._pieces.popleft()
        self.begin += 1


def _size(piece: StreamPiece) -> int:
    return len(piece.encode("utf-8")) if isinstance(piece, str) else 0
