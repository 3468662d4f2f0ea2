"""The tokenizer of a run: an existing one, or one made from the training text."""

import lzma
import tempfile
from pathlib import Path

from deq_model.tokenizers.base import UNK_TOKEN, Tokenizer
from deq_model.tokenizers.load import load_tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.train import train_sentencepiece
from deq_model.tokenizers.word import WordTokenizer, build_word_vocabulary
from training.data import read_text
from training.options.data import DataOptions


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


def make_tokenizer(options: DataOptions, *, seed: int) -> Tokenizer:
    """The tokenizer that the options ask for.

    Raises:
        TokenizerError: it cannot be read, or the text does not allow one of this size.
        DataError: the training text cannot be read.
    """
    if options.tokenizer is not None:
        return open_tokenizer(options.tokenizer)
    if options.tokenizer_kind == "word":
        return _make_words(options)
    return _make_pieces(options, seed=seed)


def _make_words(options: DataOptions) -> WordTokenizer:
    words = build_word_vocabulary(read_text(options.train).split("\n"))
    if options.vocab_size and len(words) > options.vocab_size:
        words = words[: options.vocab_size]
    if UNK_TOKEN not in words:  # without it a new text with a new word could not be encoded
        words = [*words[: options.vocab_size - 1 if options.vocab_size else None], UNK_TOKEN]
    return WordTokenizer(words)


def _make_pieces(options: DataOptions, *, seed: int) -> SentencePieceTokenizer:
    with tempfile.TemporaryDirectory() as name:
        text, model = Path(name) / "text", Path(name) / "tokenizer.model"
        if options.train.suffix == ".xz":
            text.write_bytes(lzma.decompress(options.train.read_bytes()))
        else:
            text = options.train
        train_sentencepiece(text, model, vocab_size=options.vocab_size, seed=seed)
        return SentencePieceTokenizer.from_file(model)
