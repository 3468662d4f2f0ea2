"""The ways of running the engine that its benchmarks compare."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from server.config import EarlyDType


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
        early: how the feed-forward is computed, as the server's ``early_dtype``.
        by_cost: give out rows by the times of calls, which the engine measures first.
        limits: fields of ``EngineLimits`` that differ from their defaults.
    """

    name: str
    what: str
    dtype: torch.dtype = torch.float32
    tol: float = 1e-3
    max_nfe: int = 100
    warm: bool = True
    early: EarlyDType = "none"
    by_cost: bool = True
    limits: Mapping[str, Any] = field(default_factory=dict)


_SERVED = Setting(
    name="served",
    what="as deqlm serve does by default: weights in float16, large feed-forwards by differences "
    "in 8 bits, 3e-3",
    dtype=torch.float16,
    tol=3e-3,
    early="auto",
)

SETTINGS = {
    setting.name: setting
    for setting in (
        _SERVED,
        Setting(name="float32", what="float32, 1e-3"),
        Setting(name="bfloat16", what="bfloat16, 5e-3", dtype=torch.bfloat16, tol=5e-3),
        # What each means pays: served without it.
        replace(
            _SERVED, name="unguessed", what="served, no token guessed", limits={"guess_ahead": 0}
        ),
        replace(_SERVED, name="cold", what="served, from zeros", warm=False),
        replace(_SERVED, name="float16", what="served, without 8-bit differences", early="none"),
        replace(
            _SERVED,
            name="float32-3e-3",
            what="float16, with float32",
            dtype=torch.float32,
            early="none",
        ),
        replace(_SERVED, name="uncosted", what="served, without the times of calls", by_cost=False),
        replace(_SERVED, name="window-1", what="served, one token at a time", limits={"window": 1}),
        replace(_SERVED, name="window-16", what="served, at most 16", limits={"window": 16}),
    )
}

DEFAULT = ("served", "float32", "bfloat16")
"""Those that are measured when none is named."""

EXACT = Setting(
    name="exact",
    what="float64, 1e-6, one token at a time",
    dtype=torch.float64,
    tol=1e-6,
    max_nfe=400,
    by_cost=False,
    limits={"window": 1},
)
"""The reference of every change of a log-probability."""

EXACT_FLOAT32 = replace(EXACT, name="exact-float32", dtype=torch.float32, limits={"window": 16})
"""For the big model, whose calls take long; from the map if there is one."""
