"""Bounds of the histograms' buckets: as dashboards of other servers have them, and as asked for."""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

Bounds = tuple[float, ...]

MOST_BUCKETS: Final = 64
"""Of one histogram: each is a series for every model."""

_FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LONG: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_LENGTH: Final = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
_ROWS: Final = (1.0, *(float(8 * 2**power) for power in range(12)))
_WINDOW: Final = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
_NFE: Final = (
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 75.0,
    100.0, 200.0, 500.0, 1000.0,
)  # fmt: skip
_RESIDUAL: Final = tuple(step * 10.0**power for power in range(-8, 1) for step in (1, 2, 5))
_FIRST_RESIDUAL: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 2.0)
_CALL_SECONDS: Final = tuple(step * 10.0**power for power in range(-4, 1) for step in (1, 2, 5))

_REFUSAL: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

BUCKETS: Final[Mapping[str, Bounds]] = {
    "refusal_seconds": _REFUSAL,
    "time_to_first_token_seconds": _FIRST_TOKEN,
    "inter_token_latency_seconds": _PER_TOKEN,
    "request_time_per_output_token_seconds": _PER_TOKEN,
    "e2e_request_latency_seconds": _LONG,
    "request_queue_time_seconds": _LONG,
    "request_prefill_time_seconds": _LONG,
    "request_decode_time_seconds": _LONG,
    "request_prompt_tokens": _LENGTH,
    "request_generation_tokens": _LENGTH,
    "iteration_tokens": _ROWS,
    "iteration_sequences": _ROWS,
    "window_tokens": _WINDOW,
    "f_call_seconds": _CALL_SECONDS,
    "nfe_per_token": _NFE,
    "first_residual": _FIRST_RESIDUAL,
    "token_residual": _RESIDUAL,
    "store_seconds": _CALL_SECONDS,
}
"""Of every histogram, by its name without ``deqlm_``."""


def read_buckets(entries: Iterable[str]) -> dict[str, Bounds]:
    """The bounds of all histograms, those that entries name as they say.

    Args:
        entries: NAME=BOUND:BOUND:..., the name with or without ``deqlm_``.

    Raises:
        ValueError: its message goes on after "metrics_buckets must".

    >>> read_buckets(["nfe_per_token=5:10"])["nfe_per_token"]
    (5.0, 10.0)
    """
    changed: dict[str, Bounds] = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        name = name.strip().removeprefix("deqlm_")
        if name not in BUCKETS:
            raise ValueError(f"name a histogram, one of {', '.join(BUCKETS)}, got {entry!r}")
        if name in changed:
            raise ValueError(f"name {name} once, got {entry!r} as well")
        bounds = _read_bounds(text)
        if bounds is None:
            bound = f"1 to {MOST_BUCKETS} finite bounds that rise"
            raise ValueError(f"give {name} {bound}, got {entry!r}")
        changed[name] = bounds
    return {**BUCKETS, **changed}


def _read_bounds(text: str) -> Bounds | None:
    """The bounds, if they are some that buckets may have."""
    try:
        bounds = tuple([float(part) for part in text.split(":")])
    except ValueError:
        return None
    rises = all(a < b for a, b in pairwise(bounds))
    is_good = rises and all(map(math.isfinite, bounds)) and len(bounds) <= MOST_BUCKETS
    return bounds if is_good else None
