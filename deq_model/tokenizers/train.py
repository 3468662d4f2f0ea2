"""Training of sentencepiece models that keep every character of the text."""

from pathlib import Path
from typing import Any

import sentencepiece

from deq_model.tokenizers.base import EOS_TOKEN, UNK_TOKEN
from deq_model.tokenizers.errors import TokenizerTrainingError

# Sentences sampled from larger texts: enough for any vocabulary, and memory stays bounded.
_MAX_SENTENCES = 2_000_000
_MAX_SENTENCE_BYTES = 1 << 20
_THREADS = 4  # fixed, as sums over threads depend on their number: same input, same model


def train_sentencepiece(
    input_path: Path, model_path: Path, *, vocab_size: int, seed: int = 0
) -> None:
    """Train a unigram model on the lines of a UTF-8 text and write it.

    Args:
        input_path: the text; its newlines become tokens of their own.
        model_path: the ``.model`` file to write; its folder must exist.
        vocab_size: number of tokens, among them ``<eos>``, ``<unk>``, the newline and 256 bytes.
        seed: chooses the sample of a text of more than two million lines.

    Raises:
        TokenizerTrainingError: the text cannot be read, or does not allow ``vocab_size`` tokens.
    """
    sentencepiece.set_random_generator_seed(seed)
    try:
        with (
            input_path.open(encoding="utf-8", newline="\n") as lines,
            model_path.open("wb") as model,
        ):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line.rstrip("\n") for line in lines),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="unigram",
                **_LOSSLESS,
            )
    except (OSError, RuntimeError, ValueError) as error:
        model_path.unlink(missing_ok=True)
        message = f"cannot train {vocab_size} tokens on {input_path}: {error}"
        raise TokenizerTrainingError(message) from error


_LOSSLESS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_by_whitespace": True,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "character_coverage": 0.9999,
    "user_defined_symbols": ["\n"],
    "eos_id": 0,
    "eos_piece": EOS_TOKEN,
    "unk_id": 1,
    "unk_piece": UNK_TOKEN,
    "bos_id": -1,
    "pad_id": -1,
    "input_sentence_size": _MAX_SENTENCES,
    "shuffle_input_sentence": True,
    "max_sentence_length": _MAX_SENTENCE_BYTES,
    "num_threads": _THREADS,
    "minloglevel": 2,
}
