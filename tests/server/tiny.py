"""Checkpoints small enough to be made and loaded in a moment, with weights by formula."""

from pathlib import Path

import torch

from deq_model.checkpoint import save_checkpoint
from deq_model.config import ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.word import WordTokenizer

SPM = Path(__file__).resolve().parents[2] / "data" / "spm" / "tokenizer.model"
WORDS = tuple("the of and to a in he that was it his her with as had for she not at but".split())


def word_tokenizer() -> WordTokenizer:
    """``<eos>``, ``<unk>`` and twenty frequent words."""
    return WordTokenizer(["<eos>", "<unk>", *WORDS])


def save_words(folder: Path) -> Path:
    """A checkpoint over words."""
    return _save(folder, word_tokenizer(), cutoffs=(8,), div_val=2)


def save_pieces(folder: Path) -> Path:
    """A checkpoint over the bundled sentencepiece vocabulary."""
    return _save(folder, SentencePieceTokenizer.from_file(SPM), cutoffs=(), div_val=1)


def _save(folder: Path, tokenizer: Tokenizer, *, cutoffs: tuple[int, ...], div_val: int) -> Path:
    config = ModelConfig(
        n_token=tokenizer.n_token,
        d_model=16,
        n_head=2,
        d_head=8,
        d_inner=24,
        cutoffs=cutoffs,
        div_val=div_val,
        tgt_len=16,
        mem_len=16,
    )
    model = DEQLanguageModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # So that f contracts, in about a dozen calls, and distributions are not flat.
            parameter.normal_(0.0, 0.25, generator=generator)
    save_checkpoint(folder, model, tokenizer)
    return folder
