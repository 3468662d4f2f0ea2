"""What every tokenizer offers: encoding with byte offsets, decoding, and both as streams."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deq_model.tokenizers.errors import InvalidTextError, InvalidTokenIdError

EOS_TOKEN = "<eos>"
UNK_TOKEN = "<unk>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Tokens of a text. Token ``i`` covers the bytes ``begin[i]:end[i]`` of its UTF-8 form."""

    ids: tuple[int, ...] = ()
    """Token ids."""
    begin: tuple[int, ...] = ()
    """Byte offset of each token's first byte; in a stream, counted from the stream's start."""
    end: tuple[int, ...] = ()
    """Byte offset after each token's last byte."""
    unknown: int = 0
    """How many of the tokens stand for words outside the vocabulary."""

    def __len__(self) -> int:
        return len(self.ids)


class StreamEncoder(Protocol):
    """Encodes text that arrives in pieces; however it is cut, the tokens are the same."""

    def feed(self, text: str) -> Encoding:
        """Take more text; return the tokens that no later text can change."""

    def flush(self) -> Encoding:
        """End the stream; return the tokens held back until now."""


class StreamDecoder(Protocol):
    """Decodes tokens one by one; a character split across tokens waits for its last byte."""

    def feed(self, token_id: int) -> str:
        """Take one token; return the text that is complete by now."""

    def flush(self) -> str:
        """End the stream; return what was held back, incomplete characters as U+FFFD."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def n_token(self) -> int:
        """Size of the vocabulary: ids lie in ``[0, n_token)``."""

    @property
    def eos_id(self) -> int:
        """Id of ``<eos>``, which also primes a fresh context."""

    @property
    def unk_id(self) -> int | None:
        """Id of ``<unk>``, or None if the vocabulary has none."""

    def encode(self, text: str) -> Encoding:
        """Tokens of a whole text. Raises InvalidTextError, UnknownWordError."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens. Raises InvalidTokenIdError."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that the token itself adds to decoded text, without a joining space."""

    def stream_encoder(self) -> StreamEncoder:
        """A fresh encoder for text that arrives in pieces."""

    def stream_decoder(self, *, after: int | None = None) -> StreamDecoder:
        """A fresh decoder; ``after`` is the token before the first one, if there is one."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's file into ``folder``, where ``load_tokenizer`` finds it."""


def check_token_id(token_id: int, *, n_token: int) -> int:
    """Return the id if it is in ``[0, n_token)``, else raise InvalidTokenIdError."""
    if not 0 <= token_id < n_token:
        raise InvalidTokenIdError(f"token id must be in [0, {n_token}), got {token_id}")
    return token_id


def check_text(text: str) -> str:
    """Return the text if UTF-8 can carry it, else raise InvalidTextError."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        message = f"text holds the lone surrogate U+{code:04X} at character {error.start}"
        raise InvalidTextError(message) from None
    return text
