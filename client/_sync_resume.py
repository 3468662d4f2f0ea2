"""A score stream that goes on after a lost connection, for the synchronous client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from client import resources, results
from client._resume import LOOKS, Sent, is_lost
from client._retry import RetryPolicy
from client.errors import DeqlmError
from client.options import StreamPiece

if TYPE_CHECKING:
    from client.sync import Client

Open = Callable[[Iterable[StreamPiece]], Generator[results.StreamedScore, None, None]]
"""Begins a stream."""


class _Feed:
    """The caller's pieces, for one stream after another; each reads on a thread of its own."""

    def __init__(self, pieces: Iterable[StreamPiece], sent: Sent) -> None:
        self.sent = sent
        self._pieces = iter(pieces)
        self._failure: BaseException | None = None
        # Two locks: an answer is noted while a stream waits for the caller's next piece.
        self._reading, self.lock = threading.Lock(), threading.Lock()

    def pieces(self) -> Iterator[StreamPiece]:
        """From the first that is not committed."""
        index = self.sent.begin
        while (piece := self._at(index)) is not None:
            yield piece
            index += 1

    def _at(self, index: int) -> StreamPiece | None:
        with self._reading:  # a lost stream's thread may still wait for the next piece
            with self.lock:
                if index < self.sent.begin:
                    return None  # of a lost stream's
                if index < self.sent.end:
                    return self.sent.piece(index)
            if self._failure is not None:
                raise self._failure
            try:
                piece = next(self._pieces)
                with self.lock:
                    self.sent.add(piece)
            except StopIteration:
                return None
            except BaseException as error:
                self._failure = error
                raise
            return piece


def resuming(
    client: Client,
    session_id: str,
    pieces: Iterable[StreamPiece],
    begin: Open,
    *,
    retry: RetryPolicy,
    sleep: Callable[[float], None],
) -> Generator[results.StreamedScore, None, None]:
    """Yield the answers of one stream after another, until one comes to its end."""
    sent = Sent(client.get_session(session_id).position)
    feed, failures = _Feed(pieces, sent), 0
    while True:
        confirmed = 0
        try:
            with contextlib.closing(begin(feed.pieces())) as answers:
                for answer in answers:
                    confirmed, failures = answer.committed_bytes, 0
                    with feed.lock:
                        sent.confirm(position=answer.committed_position, text_bytes=confirmed)
                    yield answer
            return
        except DeqlmError as error:
            failures += 1
            if not is_lost(error) or failures >= retry.max_attempts:
                raise
            sleep(retry.backoff_s(failures, jitter=1.0))
            info = _free(client, session_id, error, retry, sleep)
            try:
                with feed.lock:
                    _skip(client, info, sent, confirmed)
            except ValueError:
                raise error from None


def _free(
    client: Client,
    session_id: str,
    failure: DeqlmError,
    retry: RetryPolicy,
    sleep: Callable[[float], None],
) -> resources.SessionInfo:
    """The session, once the lost stream holds it no more. Raises DeqlmError."""
    for look in range(1, LOOKS):
        try:
            info = client.get_session(session_id)
            if not info.busy:
                return info
        except DeqlmError as error:
            if not is_lost(error):
                raise
        sleep(retry.backoff_s(min(look, 8), jitter=1.0))
    raise failure


def _skip(client: Client, info: resources.SessionInfo, sent: Sent, confirmed: int) -> None:
    """Leave out what is committed. Raises ValueError where nobody can say what is."""
    sent.begin_anew(confirmed)
    while sent.position != info.position:
        text = sent.text() if sent.is_text else None
        tokens = client.tokenize(text, model=info.model).tokens if text else ()
        sent.skip(info.position, tokens if sent.is_text else None)
