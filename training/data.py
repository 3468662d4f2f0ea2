"""Tokens as streams: contiguous columns, cut into blocks along time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.word import WordTokenizer
from training.errors import DataError, OptionsError
from training.options.data import DataOptions
from training.prepare.encode import Ids, encode
from training.prepare.folder import Progress, Remake, prepare_texts
from training.prepare.manifest import SPLITS, Manifest, Split
from training.prepare.opened import PreparedData as PreparedData
from training.prepare.opened import open_ids
from training.prepare.opened import open_prepared as open_prepared
from training.prepare.text import Text, pieces
from training.vocabulary import plan_of, tokenizer_fingerprint

DATA_FOLDER = "data"
_SHORT_SHARE = 0.05
_NORMAL = NormalDist()
_WORD = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A text in tokens.

    Attributes:
        ids: ``(n,)`` int64, or of a prepared folder's dtype and mapped into memory.
        unknown: how many of them stand for words outside the vocabulary.
    """

    ids: Tensor
    unknown: int


@dataclass(frozen=True, slots=True)
class Block:
    """Inputs and targets of streams, side by side.

    Attributes:
        tokens: ``(streams, L)`` int64.
        targets: ``(streams, L)`` int64: the token after each.
        begin: position in the stream of the first token; 0 begins an epoch.
    """

    tokens: Tensor
    targets: Tensor
    begin: int


class Streams:
    """A token sequence as ``batch_size`` contiguous streams; what is left over is dropped."""

    def __init__(self, ids: Tensor | Ids, *, batch_size: int, share: slice | None = None) -> None:
        """Takes a sequence, which stays where it is: blocks are copied out of it when asked for.

        Args:
            ids: ``(n,)`` tokens of any integer type, in memory or mapped into it.
            batch_size: streams to cut them into.
            share: the streams that blocks are made of, ``slice(begin, end)``; None for all.

        Raises:
            DataError: a stream would have fewer than two tokens, or the share has no stream.
        """
        length = len(ids) // batch_size
        if length < 2:
            raise DataError(
                f"text must have at least {2 * batch_size} tokens for batch_size {batch_size}, "
                f"got {len(ids)}"
            )
        array: Ids = ids.numpy() if isinstance(ids, Tensor) else ids
        columns = array[: length * batch_size].reshape(batch_size, length)
        self._columns = columns[_rows(share, batch_size=batch_size)]

    @property
    def batch_size(self) -> int:
        """Streams of a block: those of the share."""
        streams: int = self._columns.shape[0]
        return streams

    @property
    def length(self) -> int:
        """Targets of one stream: its tokens but the first."""
        length: int = self._columns.shape[1]
        return length - 1

    def block(self, begin: int, *, tgt_len: int) -> Block:
        """The block of at most ``tgt_len`` tokens that begins at ``begin`` < ``length``."""
        end = min(begin + tgt_len, self.length)
        read = torch.from_numpy(self._columns[:, begin : end + 1].astype(np.int64))
        return Block(read[:, :-1], read[:, 1:], begin)

    def blocks(self, *, tgt_len: int) -> Iterator[Block]:
        """All blocks of one epoch; the last can be shorter."""
        for begin in range(0, self.length, tgt_len):
            yield self.block(begin, tgt_len=tgt_len)


def _rows(share: slice | None, *, batch_size: int) -> slice:
    begin, end, step = (slice(None) if share is None else share).indices(batch_size)
    if step != 1 or begin >= end:
        raise DataError(f"share must name streams in a row of {batch_size}, got {share}")
    return slice(begin, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLengths:
    """Lengths of a run's blocks: the same for a step on every rank, and after a resume.

    A length is drawn from a normal distribution about ``tgt_len``, in one block of twenty about
    half of it, and bounded (as in Transformer-XL's training, arXiv 1901.02860). Where the text
    ends earlier, a block is what is left.

    Attributes:
        tgt_len: mean, in tokens.
        std: standard deviation, in tokens; 0 for blocks of ``tgt_len`` all.
        minimum: fewest tokens.
        seed: of the draws.
    """

    tgt_len: int
    std: float = 0.0
    minimum: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.std > 0 and self.minimum > self.tgt_len:
            raise OptionsError(
                f"data.tgt_len_min must be at most model.tgt_len = {self.tgt_len}, got "
                f"{self.minimum}"
            )

    @property
    def longest(self) -> int:
        """No block has more tokens."""
        return int(self.tgt_len + 3 * self.std)

    def at(self, step: int) -> int:
        """Tokens of the block of a step."""
        if self.std == 0:
            return self.tgt_len
        # A hash, not a generator: no state to save, and the same with every version of a library.
        digest = hashlib.sha256(f"{self.seed}:{step}".encode()).digest()
        kind, place = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8))
        mean = self.tgt_len / 2 if kind < _SHORT_SHARE * _WORD else float(self.tgt_len)
        drawn = mean + self.std * _NORMAL.inv_cdf((place + 0.5) / (_WORD + 1))
        return max(self.minimum, min(self.longest, round(drawn)))


def open_data(
    options: DataOptions,
    *,
    out: Path,
    seed: int,
    remake: Remake = "never",
    progress: Progress | None = None,
) -> PreparedData:
    """The data of a run: the prepared folder it names, or its texts prepared into ``out/data``.

    Args:
        options: which.
        out: folder of the run.
        seed: chooses the lines that a sentencepiece model is trained on, of a long text.
        remake: what to do where ``out/data`` was made of other texts or with other options:
            ``never`` refuses, which is right for a run that goes on.
        progress: is told what is being done.

    Raises:
        DataError: a text or the folder is unusable, or has changed.
        TokenizerError: the tokenizer is unusable, or cannot be made.
    """
    if options.prepared is not None:
        return open_prepared(options.prepared)
    assert options.train is not None and options.valid is not None, "the options check this"
    folder = out / DATA_FOLDER
    prepare_texts(
        {"train": options.train, "valid": options.valid},
        folder,
        plan_of(options, seed=seed),
        remake=remake,
        progress=progress,
    )
    return open_prepared(folder)


def read_text(path: Path) -> str:
    """A UTF-8 text, plain, ``.xz`` or ``.gz``; a last line without newline gets one.

    Raises:
        DataError: the file cannot be read, is no UTF-8, or is empty.
    """
    return "".join(pieces(Text(path=path)))


def is_prepared(path: Path) -> bool:
    """Whether a path names a prepared folder, or a split's file in one, rather than a text."""
    return path.is_dir() or path.suffix == ".npy"


def token_sizes(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """``(n,)`` int64, bytes that each token adds to the text that the tokenizer makes of them.

    Words have one space between them there, and an unknown word the length of ``<unk>``.
    """
    sizes = torch.tensor([len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_token)])[ids]
    if isinstance(tokenizer, WordTokenizer):
        is_word = ids != tokenizer.eos_id
        sizes[1:] += is_word[1:] & is_word[:-1]
    return sizes


def read_tokens(path: Path, tokenizer: Tokenizer, *, split: Split = "test") -> TokenFile:
    """Tokens of a text file, or of a split of a prepared folder.

    Args:
        path: a text as in ``read_text``, a prepared folder, or ``FOLDER/SPLIT.npy`` of one.
        tokenizer: whose ids.
        split: of the folder.

    Raises:
        DataError: the text cannot be read or encoded; the folder is unusable, has no such split,
            or was prepared with another tokenizer.
        TokenizerError: the text cannot be encoded.
    """
    if path.is_dir():
        return _read_split(path, split, tokenizer)
    if is_prepared(path):
        named = next((name for name in SPLITS if name == path.stem), None)
        if named is None:
            raise DataError(f"{path} must be train.npy, valid.npy or test.npy of a prepared folder")
        return _read_split(path.parent, named, tokenizer)
    parts = list(encode(Text(path=path), tokenizer))
    ids = np.concatenate([part.ids for part in parts]).astype(np.int64)
    return TokenFile(ids=torch.from_numpy(ids), unknown=sum(part.unknown for part in parts))


def _read_split(folder: Path, split: Split, tokenizer: Tokenizer) -> TokenFile:
    manifest = Manifest.load(folder)
    found = tokenizer_fingerprint(tokenizer)
    if found != manifest.tokenizer:
        raise DataError(
            f"{folder} was prepared with the tokenizer {manifest.tokenizer}, the checkpoint has "
            f"{found}; prepare the text with --tokenizer CHECKPOINT"
        )
    if split not in manifest.splits:
        raise DataError(f"split must be one of {', '.join(manifest.splits)}, got {split}")
    mapped = open_ids(folder, split, manifest, mode="c")  # torch wants arrays it could write to
    return TokenFile(ids=torch.from_numpy(mapped), unknown=manifest.splits[split].unknown)
