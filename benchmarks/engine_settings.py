"""The ways of running the engine that its benchmarks compare."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way of running the engine.

    Attributes:
        name: short, for tables and flags.
        what: in a few words.
        dtype: of the products of f.
        tol: relative residual at which a token is accepted.
        max_nfe: budget of a token.
        warm: start from the map beside the checkpoint, if there is one.
        engine: further arguments of ``Engine``.
        limits: fields of ``EngineLimits`` that differ from their defaults.
    """

    name: str
    what: str
    dtype: torch.dtype = torch.float32
    tol: float = 1e-3
    max_nfe: int = 100
    warm: bool = True
    engine: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(name="float32", what="float32, 1e-3"),
        Setting(name="float16", what="weights in float16, 1e-3", dtype=torch.float16),
        Setting(name="bfloat16", what="bfloat16, 5e-3", dtype=torch.bfloat16, tol=5e-3),
    )
}

EXACT = Setting(
    name="exact",
    what="float64, 1e-6, one token at a time",
    dtype=torch.float64,
    tol=1e-6,
    max_nfe=400,
    limits={"window": 1},
)
"""The reference of every change of a log-probability."""
