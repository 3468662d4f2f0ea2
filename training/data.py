"""Text files as token streams: contiguous columns, cut into blocks along time."""

import hashlib
import lzma
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deq_model.checkpoint import write_whole
from deq_model.tokenizers.base import Tokenizer
from training.errors import DataError

_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A text in tokens.

    Attributes:
        ids: ``(n,)`` int64.
        unknown: how many of them stand for words outside the vocabulary.
    """

    ids: Tensor
    unknown: int


@dataclass(frozen=True, slots=True)
class Block:
    """Inputs and targets of all streams, side by side.

    Attributes:
        tokens: ``(batch, L)`` int64.
        targets: ``(batch, L)`` int64: the token after each.
        begin: position in the stream of the first token; 0 begins an epoch.
    """

    tokens: Tensor
    targets: Tensor
    begin: int


class Streams:
    """A token sequence as ``batch_size`` contiguous streams; what is left over is dropped."""

    def __init__(self, ids: Tensor, *, batch_size: int) -> None:
        """Takes ``(n,)`` ids. Raises DataError if a stream would have fewer than two tokens."""
        length = len(ids) // batch_size
        if length < 2:
            raise DataError(
                f"text must have at least {2 * batch_size} tokens for batch_size {batch_size}, "
                f"got {len(ids)}"
            )
        self._columns = ids[: length * batch_size].view(batch_size, length)

    @property
    def length(self) -> int:
        """Targets of one stream: its tokens but the first."""
        return self._columns.shape[1] - 1

    def block(self, begin: int, *, tgt_len: int) -> Block:
        """The block of at most ``tgt_len`` tokens that begins at ``begin`` < ``length``."""
        end = min(begin + tgt_len, self.length)
        return Block(self._columns[:, begin:end], self._columns[:, begin + 1 : end + 1], begin)

    def blocks(self, *, tgt_len: int) -> Iterator[Block]:
        """All blocks of one epoch; the last can be shorter."""
        for begin in range(0, self.length, tgt_len):
            yield self.block(begin, tgt_len=tgt_len)


def read_text(path: Path) -> str:
    """A UTF-8 text, plain or ``.xz``; a last line without newline gets one.

    Raises:
        DataError: the file cannot be read, is no UTF-8, or is empty.
    """
    try:
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text {path}: {error}") from None
    if not text:
        raise DataError(f"text {path} is empty")
    return text if text.endswith("\n") else text + "\n"


def read_tokens(path: Path, tokenizer: Tokenizer, *, cache: Path | None = None) -> TokenFile:
    """Tokens of a text file.

    Args:
        path: as in ``read_text``.
        tokenizer: whose ids.
        cache: folder that keeps the tokens, by the contents of text and tokenizer.

    Raises:
        DataError: see ``read_text``.
        TokenizerError: the text cannot be encoded.
    """
    text = read_text(path)
    if cache is None:
        return _encode(text, tokenizer)
    kept = cache / f"tokens-{_key(text, tokenizer)}.npz"
    if kept.exists():
        with np.load(kept) as file:
            ids = torch.from_numpy(file["ids"].astype(np.int64))
            return TokenFile(ids=ids, unknown=int(file["unknown"]))
    tokens = _encode(text, tokenizer)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(kept, lambda temporary: _write(temporary, tokens))
    return tokens


def _encode(text: str, tokenizer: Tokenizer) -> TokenFile:
    encoding = tokenizer.encode(text)
    return TokenFile(ids=torch.tensor(encoding.ids, dtype=torch.int64), unknown=encoding.unknown)


def _write(path: Path, tokens: TokenFile) -> None:
    with path.open("wb") as file:
        np.savez(file, ids=tokens.ids.numpy().astype(np.int32), unknown=np.int64(tokens.unknown))


def _key(text: str, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(tokenizer_bytes(tokenizer))
    digest.update(text.encode("utf-8"))
    return digest.hexdigest()[:_KEY_DIGITS]


def tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    """Name and contents of the file that a tokenizer saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        (path,) = (Path(folder) / name for name in os.listdir(folder))
        return path.name.encode() + b"\0" + path.read_bytes()
