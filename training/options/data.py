"""What to train on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import OptionsError
from training.options.checks import at_least, not_negative

TokenizerKind = Literal["sentencepiece", "word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What to train on: a prepared folder, or two texts.

    Attributes:
        prepared: folder that ``deqlm prepare`` made; its texts and its tokenizer are used.
        train: text to train on, UTF-8, plain, .xz or .gz.
        valid: text to measure the perplexity on while training, likewise.
        tokenizer: file or folder of an existing tokenizer; unset trains or builds one.
        tokenizer_kind: what to make from the training text where tokenizer is unset.
        vocab_size: tokens of a new sentencepiece model; most words of a new word vocabulary, 0 for
            all.
        batch_size: streams that a text is cut into, side by side, on all ranks together.
        tgt_len_std: standard deviation of the block lengths, in tokens; one block in twenty is half
            as long as the others; 0 for blocks of one length.
        tgt_len_min: fewest tokens of a block where lengths vary.
    """

    prepared: Path | None = None
    train: Path | None = None
    valid: Path | None = None
    tokenizer: Path | None = None
    tokenizer_kind: TokenizerKind = "sentencepiece"
    vocab_size: int = 4096
    batch_size: int = 16
    tgt_len_std: float = 0.0
    tgt_len_min: int = 5

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "tgt_len_min")
        at_least(self, 0, "vocab_size")
        not_negative(self, "tgt_len_std")
        if self.tokenizer_kind == "sentencepiece" and self.vocab_size == 0:
            raise OptionsError("vocab_size must be at least 1 for sentencepiece, got 0")
        if self.prepared is None:
            self._check_texts()
        else:
            self._check_prepared(self.prepared)

    def _check_texts(self) -> None:
        for name in ("train", "valid"):
            if getattr(self, name) is None:
                raise OptionsError(
                    f"data.{name} must name a text, got nothing; or name a folder that deqlm "
                    "prepare made by data.prepared"
                )

    def _check_prepared(self, folder: Path) -> None:
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("train", "valid", "tokenizer", "tokenizer_kind", "vocab_size"):
            if getattr(self, name) != fields[name]:
                raise OptionsError(
                    f"data.{name} must be unset where data.prepared is {folder}, which has its "
                    f"own, got {getattr(self, name)}"
                )
