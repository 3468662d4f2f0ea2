"""The tokenizer of a run: an existing one, or one made from the training text."""

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deq_model.tokenizers.base import EOS_TOKEN, UNK_TOKEN, Tokenizer
from deq_model.tokenizers.errors import TokenizerTrainingError
from deq_model.tokenizers.load import load_tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import MODEL_FILE, SentencePieceTokenizer
from deq_model.tokenizers.train import train_sentencepiece
from deq_model.tokenizers.word import VOCABULARY_FILE, WordTokenizer
from training.errors import DataError
from training.options.data import DataOptions, TokenizerKind
from training.prepare.text import Advance, Text, pieces

TOKENIZER_FILES = (VOCABULARY_FILE, MODEL_FILE)
_FINGERPRINT_DIGITS = 16
_LEAST_WORDS = 2
_TOO_HIGH = re.compile(r"size too high .*<= (\d+)", re.DOTALL)
_TOO_LOW = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_NO_LINES = "!sentences_.empty()"
_LEAST_PIECES = 259  # <eos>, <unk>, the newline, 256 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerPlan:
    """Which tokenizer to use.

    Attributes:
        tokenizer: file or folder of an existing one; None makes one.
        kind: what to make.
        vocab_size: tokens of a sentencepiece model; most words of a word vocabulary, 0 for all.
        seed: chooses the lines that a sentencepiece model is trained on, of a long text.
    """

    tokenizer: Path | None = None
    kind: TokenizerKind = "sentencepiece"
    vocab_size: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            return
        if self.kind == "word" and 0 < self.vocab_size < _LEAST_WORDS:
            raise DataError(
                f"vocab_size must be 0 for all words, or at least {_LEAST_WORDS} for <eos> and "
                f"<unk>, got {self.vocab_size}"
            )
        if self.kind == "sentencepiece" and self.vocab_size < _LEAST_PIECES:
            raise DataError(
                f"vocab_size must be at least {_LEAST_PIECES} for sentencepiece (<eos>, <unk>, "
                f"the newline and 256 bytes), got {self.vocab_size}"
            )


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from its file (words if it ends in ``.txt``) or from a folder that has one.

    Raises:
        TokenizerFileError: there is none, or it is damaged.
    """
    if path.is_dir():
        return load_tokenizer(path)
    if path.suffix == ".txt":
        return WordTokenizer.from_file(path)
    return SentencePieceTokenizer.from_file(path)


def plan_of(options: DataOptions, *, seed: int) -> TokenizerPlan:
    """What the options of a run ask for. Raises DataError on an impossible vocab_size."""
    return TokenizerPlan(
        tokenizer=options.tokenizer,
        kind=options.tokenizer_kind,
        vocab_size=options.vocab_size,
        seed=seed,
    )


def build_tokenizer(plan: TokenizerPlan, train: Text, advance: Advance | None = None) -> Tokenizer:
    """The tokenizer that the plan asks for.

    Args:
        plan: what to read or make.
        train: text to make it from.
        advance: told how many bytes of the text have been read.

    Raises:
        TokenizerError: it cannot be read, or the text does not allow one.
        DataError: the text cannot be read, or does not allow so many tokens.
    """
    if plan.tokenizer is not None:
        return open_tokenizer(plan.tokenizer)
    if plan.kind == "word":
        return _words(pieces(train, advance), most=plan.vocab_size)
    return _sentencepiece(train, plan, advance)


def tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    """Name and contents of the file that a tokenizer saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        (path,) = (Path(folder) / name for name in os.listdir(folder))
        return path.name.encode() + b"\0" + path.read_bytes()


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hexadecimal digits that tell a tokenizer from others."""
    return hashlib.sha256(tokenizer_bytes(tokenizer)).hexdigest()[:_FINGERPRINT_DIGITS]


def whole_words(text: Iterable[str]) -> Iterator[str]:
    """The same text, cut so that no word is: every piece but the last ends in white space."""
    held: list[str] = []
    for piece in text:
        tail = "" if piece[-1:].isspace() else piece.rsplit(maxsplit=1)[-1]
        certain = piece[: len(piece) - len(tail)]
        if certain:
            yield "".join([*held, certain])
            held = []
        held.append(tail)
    rest = "".join(held)
    if rest:
        yield rest


def _words(text: Iterable[str], *, most: int) -> WordTokenizer:
    """``<eos>``, then by falling count, ties by first appearance, as published; ``<unk>`` is in."""
    counts: Counter[str] = Counter()
    for piece in whole_words(text):
        counts.update(piece.split())
    counts.pop(EOS_TOKEN, None)
    words = [EOS_TOKEN, *(word for word, _ in counts.most_common())]
    words = words[:most] if most else words
    if UNK_TOKEN not in words:  # without it a text with a new word could not be encoded
        words = [*words[: most - 1 if most else None], UNK_TOKEN]
    return WordTokenizer(words)


def _sentencepiece(
    train: Text, plan: TokenizerPlan, advance: Advance | None
) -> SentencePieceTokenizer:
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / MODEL_FILE
        text = train.path if train.plain else _copy(train, Path(name) / "text", advance)
        try:
            train_sentencepiece(text, model, vocab_size=plan.vocab_size, seed=plan.seed)
        except TokenizerTrainingError as error:
            raise _explained(error, train, plan) from None
        return SentencePieceTokenizer.from_file(model)


def _copy(text: Text, path: Path, advance: Advance | None) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces(text, advance))
    return path


def _explained(error: TokenizerTrainingError, train: Text, plan: TokenizerPlan) -> ValueError:
    """Sentencepiece's own words say neither which option nor which text."""
    for pattern, bound in ((_TOO_HIGH, "at most"), (_TOO_LOW, "at least")):
        found = pattern.search(str(error))
        if found:
            return DataError(
                f"vocab_size must be {bound} {found[1]} for text {train.path}, got "
                f"{plan.vocab_size} (--vocab-size of prepare, --data.vocab-size of train)"
            )
    if _NO_LINES in str(error):
        return DataError(
            f"text {train.path} must have lines to train sentencepiece on, neither empty nor "
            "longer than 1 MiB; end its lines, or take words (tokenizer_kind)"
        )
    return error
