"""The architecture and its initial weights."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from deq_model.config import ModelConfig, Norm
from training.errors import OptionsError
from training.options.checks import at_least, not_negative

Init = Literal["normal", "uniform"]
_INITIAL = ("init", "init_std", "init_range", "init_projection_std")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The architecture; the vocabulary's size comes from the tokenizer.

    Attributes:
        d_model: channels of a state.
        n_head: attention heads; must divide d_model.
        d_head: channels of one head, n_head * d_head = d_model; 0 for d_model / n_head.
        d_inner: hidden width of the feed-forward part of f.
        d_embed: width of the first embedding table, 0 for d_model.
        cutoffs: ascending first ids of the rarer vocabulary clusters; none for one flat table.
        div_val: each further cluster's table is narrower by this factor.
        tgt_len: tokens of a block.
        mem_len: tokens of memory before a block.
        local_size: attention span in tokens, 0 for 1000.
        pre_lnorm: normalise inputs of attention and feed-forward instead of their outputs.
        dropout: share of channels dropped, in [0, 1).
        dropatt: share of attention weights dropped, in [0, 1).
        tie_weights: use the embedding's tables for the output as well.
        tie_projs: use the embedding's projections of the rarer clusters for the output as well.
        norm: reparametrisation of the weights of f: a learned length for each output row
            (weight_norm), a learned largest singular value for each matrix (spectral_norm), none.
        norm_clip: upper bound of those lengths, 0 for none.
        norm_target: a fixed length in place of the learned ones, 0 for learned.
        init: distribution of the initial weights.
        init_std: standard deviation of the initial weights, if they are normal.
        init_range: largest absolute value of the initial weights, if they are uniform.
        init_projection_std: standard deviation of the initial projections of embedding and output.
    """

    d_model: int = 256
    n_head: int = 4
    d_head: int = 0
    d_inner: int = 1024
    d_embed: int = 0
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    tgt_len: int = 64
    mem_len: int = 64
    local_size: int = 0
    pre_lnorm: bool = False
    dropout: float = 0.0
    dropatt: float = 0.0
    tie_weights: bool = True
    tie_projs: bool = True
    norm: Norm = "weight_norm"
    norm_clip: float = 0.0
    norm_target: float = 0.0
    init: Init = "normal"
    init_std: float = 0.02
    init_range: float = 0.1
    init_projection_std: float = 0.01

    def __post_init__(self) -> None:
        at_least(self, 1, "n_head", "d_model")
        at_least(self, 0, "d_head")
        not_negative(self, "init_std", "init_range", "init_projection_std")
        if self.d_head == 0 and self.d_model % self.n_head:
            raise OptionsError(
                f"n_head must divide d_model = {self.d_model}, got n_head = {self.n_head}"
            )
        self.config(n_token=2**31 - 1, recipe="")  # what else contradicts itself is said at once

    def config(self, *, n_token: int, recipe: str) -> ModelConfig:
        """The model's configuration. Raises ConfigError."""
        values = dataclasses.asdict(self)
        for name in _INITIAL:
            del values[name]
        values["d_head"] = self.d_head or self.d_model // self.n_head
        values["tie_projs"] = (False,) + (self.tie_projs,) * len(self.cutoffs)
        return ModelConfig(**values, n_token=n_token, recipe=recipe)
