"""Architecture of a DEQ language model, as saved in ``config.json`` beside its weights."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from deq_model.errors import ConfigError

Norm = Literal["weight_norm", "spectral_norm", "none"]
_NORMS = ("weight_norm", "spectral_norm", "none")

LARGEST_SIZE = 2**31 - 1
"""Bound of every size: above it tensors cannot be made, and torch's own message says little."""

_SIZES = (
    "n_token",
    "d_model",
    "n_head",
    "d_head",
    "d_inner",
    "d_embed",
    "div_val",
    "tgt_len",
    "mem_len",
    "local_size",
)

_SINCE_FIRST_FORMAT = ("norm_clip", "norm_target")
"""Fields that older files do not have; their defaults are what those files mean."""

UNLIMITED_LOCAL_SIZE = 1000
"""Attention span that ``local_size == 0`` stands for, in tokens, as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes and variants of the model; two configurations are equal when their models are.

    Attributes:
        n_token: vocabulary size.
        d_model: channels of a state z.
        n_head: attention heads; ``n_head * d_head`` must equal ``d_model``.
        d_head: channels of one head.
        d_inner: hidden width of the feed-forward part of f.
        d_embed: width of the first embedding table.
        cutoffs: ascending first ids of vocabulary clusters 1, 2, …; empty for one flat table.
        div_val: each further cluster's table is narrower by this factor.
        tgt_len: tokens in a segment.
        mem_len: tokens of memory before a segment.
        local_size: attention span in tokens; 0 means 1000.
        pre_lnorm: normalise the inputs of attention and feed-forward instead of their outputs.
        dropout: share of channels dropped in training.
        dropatt: share of attention weights dropped in training.
        tie_weights: output tables are the embedding tables.
        tie_projs: per cluster, whether the output projection is the embedding's.
        norm: reparametrisation of the weights of f: a learned length for each output row
            (weight_norm), a learned largest singular value for each matrix (spectral_norm), none.
        norm_clip: upper bound of those lengths, 0 for none.
        norm_target: a fixed length in place of the learned ones, 0 for learned.
        recipe: free text saying how the weights came about.
    """

    n_token: int
    d_model: int
    n_head: int
    d_head: int
    d_inner: int
    d_embed: int = 0
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    tgt_len: int = 150
    mem_len: int = 150
    local_size: int = 0
    pre_lnorm: bool = False
    dropout: float = 0.0
    dropatt: float = 0.0
    tie_weights: bool = True
    tie_projs: tuple[bool, ...] = ()
    norm: Norm = "weight_norm"
    norm_clip: float = 0.0
    norm_target: float = 0.0
    recipe: str = ""

    def __post_init__(self) -> None:
        for name in ("cutoffs", "tie_projs"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        if self.d_embed == 0:
            object.__setattr__(self, "d_embed", self.d_model)
        if not self.tie_projs:
            default = (False,) + (True,) * len(self.cutoffs)
            object.__setattr__(self, "tie_projs", default)
        self._check_ranges()
        self._check_vocabulary()

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = type(value)
            if field.type is int and kind is not int:
                raise ConfigError(f"{field.name} must be an integer, got {value!r}")
            if field.type is float and kind not in (int, float):
                raise ConfigError(f"{field.name} must be a number, got {value!r}")
            if field.type is bool and kind is not bool:
                raise ConfigError(f"{field.name} must be true or false, got {value!r}")
            if field.type is str and kind is not str:
                raise ConfigError(f"{field.name} must be a string, got {value!r}")
        _check_items("cutoffs", self.cutoffs, int, "integers")
        _check_items("tie_projs", self.tie_projs, bool, "true or false")

    def _check_ranges(self) -> None:
        for name in ("n_token", "d_model", "n_head", "d_head", "d_inner", "d_embed", "tgt_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mem_len", "local_size"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in _SIZES:
            if getattr(self, name) > LARGEST_SIZE:
                raise ConfigError(
                    f"{name} must be at most {LARGEST_SIZE}, got {getattr(self, name)}"
                )
        for name in ("dropout", "dropatt"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.n_head * self.d_head != self.d_model:
            raise ConfigError(
                f"n_head * d_head must equal d_model = {self.d_model}, "
                f"got {self.n_head} * {self.d_head} = {self.n_head * self.d_head}"
            )
        if self.d_model % 2:
            raise ConfigError(f"d_model must be even (sines and cosines), got {self.d_model}")
        self._check_norm()

    def _check_norm(self) -> None:
        if self.norm not in _NORMS:
            raise ConfigError(f"norm must be weight_norm, spectral_norm or none, got {self.norm!r}")
        for name in ("norm_clip", "norm_target"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a finite number from 0, got {value}")
            if value and self.norm == "none":
                raise ConfigError(f"{name} must be 0 where norm is none, got {value}")
        if self.norm_clip and self.norm_target:
            raise ConfigError(
                "norm_clip must be 0 where norm_target is set (there is nothing to clip), "
                f"got {self.norm_clip}"
            )

    def _check_vocabulary(self) -> None:
        edges = (0, *self.cutoffs, self.n_token)
        if any(low >= high for low, high in itertools.pairwise(edges)):
            raise ConfigError(
                f"cutoffs must ascend within [1, n_token - 1 = {self.n_token - 1}], "
                f"got {list(self.cutoffs)}"
            )
        if self.div_val < 1:
            raise ConfigError(f"div_val must be at least 1, got {self.div_val}")
        if self.d_embed // self.div_val ** len(self.cutoffs) < 1:
            raise ConfigError(
                f"d_embed // div_val ** {len(self.cutoffs)} must be at least 1, "
                f"got {self.d_embed} // {self.div_val} ** {len(self.cutoffs)}"
            )
        if len(self.tie_projs) != self.n_cluster:
            raise ConfigError(
                f"tie_projs must have one entry per cluster ({self.n_cluster}), "
                f"got {len(self.tie_projs)}"
            )

    @property
    def klen(self) -> int:
        """Largest number of keys a query sees: ``mem_len + tgt_len``."""
        return self.mem_len + self.tgt_len

    @property
    def n_cluster(self) -> int:
        """Clusters of the vocabulary: one more than there are cutoffs."""
        return len(self.cutoffs) + 1

    @property
    def cluster_edges(self) -> tuple[int, ...]:
        """First id of every cluster, then ``n_token``."""
        return (0, *self.cutoffs, self.n_token)

    @property
    def attention_span(self) -> int:
        """Keys at this distance or further are masked, in tokens."""
        return self.local_size or UNLIMITED_LOCAL_SIZE

    def cluster_width(self, cluster: int) -> int:
        """Channels of a cluster's embedding before its projection."""
        width: int = self.d_embed // self.div_val**cluster
        return width

    @property
    def has_projections(self) -> bool:
        """Whether embeddings are projected to ``d_model`` at all."""
        return self.div_val > 1 or self.d_embed != self.d_model

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a configuration; unknown and missing keys raise ``ConfigError``."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown key in model configuration: {', '.join(unknown)}")
        missing = sorted(_required(cls) - set(values))
        if missing:
            raise ConfigError(f"missing key in model configuration: {', '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The values that tell this model from others, the same for older files of it.

        Fields that came later are left out where they have their defaults, so that what is made
        from this, such as a checkpoint's fingerprint, outlives new fields.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in _SINCE_FIRST_FORMAT or value != defaults[name]
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads ``config.json``; damage of any kind raises ``ConfigError``."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold one JSON object")
        return cls.from_dict(values)

    def save(self, path: Path) -> None:
        """Writes ``config.json``."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def _check_items(name: str, values: object, kind: type, words: str) -> None:
    if not isinstance(values, tuple) or any(type(value) is not kind for value in values):
        shown = list(values) if isinstance(values, tuple) else values
        raise ConfigError(f"{name} must be a list of {words}, got {shown!r}")


def _required(cls: type[ModelConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}


_PUBLISHED_SHAPES: dict[str, Any] = {
    "n_token": 267735,
    "d_model": 700,
    "n_head": 10,
    "d_head": 70,
    "d_inner": 48000,
    "d_embed": 700,
    "cutoffs": (20000, 40000, 200000),
    "div_val": 4,
    "tgt_len": 150,
    "mem_len": 150,
    "dropout": 0.05,
}

PRESETS: dict[str, ModelConfig] = {
    "model-ift": ModelConfig(**_PUBLISHED_SHAPES, recipe="model-ift"),
    "model-ift-jr": ModelConfig(**_PUBLISHED_SHAPES, recipe="model-ift-jr"),
}
"""Architectures of the two published checkpoints."""
