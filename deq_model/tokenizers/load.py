"""Finding the tokenizer of a checkpoint folder."""

from pathlib import Path

from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.errors import TokenizerFileError
from deq_model.tokenizers.sentencepiece_tokenizer import MODEL_FILE, SentencePieceTokenizer
from deq_model.tokenizers.word import VOCABULARY_FILE, WordTokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load ``vocab.txt`` (words) or ``tokenizer.model`` (sentencepiece) from a folder.

    Raises:
        TokenizerFileError: neither or both exist, or the file is broken.
    """
    words, pieces = folder / VOCABULARY_FILE, folder / MODEL_FILE
    if words.is_file() and pieces.is_file():
        message = f"{folder} has both {VOCABULARY_FILE} and {MODEL_FILE}; remove one"
        raise TokenizerFileError(message)
    if words.is_file():
        return WordTokenizer.from_file(words)
    if pieces.is_file():
        return SentencePieceTokenizer.from_file(pieces)
    raise TokenizerFileError(f"{folder} has neither {VOCABULARY_FILE} nor {MODEL_FILE}")


def check_vocabulary(tokenizer: Tokenizer, n_token: int) -> None:
    """Raise TokenizerFileError unless the vocabulary has the size that the config gives."""
    if tokenizer.n_token != n_token:
        message = f"vocabulary has {tokenizer.n_token} entries, config n_token is {n_token}"
        raise TokenizerFileError(message)
