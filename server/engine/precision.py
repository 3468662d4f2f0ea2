"""Which rows of a call are computed roughly: by what a call takes in either way, and what is left.

The accurate f decides the fixed point: a row that is far from it may be computed in 8 bits, which
is faster for many rows, but it is never accepted by such a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SWITCH = 3e-2
"""Relative residual at which a row has seen enough of the rough f, whose own error is near it."""
MOST_ROUGH = 12
"""Rough calls on one row; after that it is taken to be stuck at the rough f's error."""

Seconds = Callable[[int], float]
"""What the feed-forward of so many rows takes."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the feed-forward by rows, accurate and rough."""

    accurate: Seconds
    rough: Seconds


def rough_rows(wishes: Sequence[bool], costs: Costs) -> list[int]:
    """Which rows to compute roughly, of those that may be: all of them, or none.

    Both feed-forwards in one call read both weights, so that with few rows the accurate one alone
    is the faster.

    Args:
        wishes: for each row, whether it may be.
        costs: of both.
    """
    may = [i for i, wish in enumerate(wishes) if wish]
    if not may:
        return []
    others = len(wishes) - len(may)
    mixed = costs.rough(len(may)) + (costs.accurate(others) if others else 0.0)
    return may if mixed < costs.accurate(len(wishes)) else []
