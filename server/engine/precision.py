"""Which rows of a call are computed roughly: by what a call takes in either way, and what is left.

The accurate f decides the fixed point: a row that is far from it may be computed in 8 bits, which
is faster for many rows, but it is never accepted by such a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.costs import CostCurve

SWITCH = 2e-2
"""Relative residual at which a row has seen enough of the rough f, whose own error is near it."""
MOST_ROUGH = 12
"""Rough calls on one row; after that it is taken to be stuck at the rough f's error."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the feed-forward, accurate and rough."""

    accurate: CostCurve
    rough: CostCurve


def switch_residual(tol: float) -> float:
    """At which residual a row goes on with the accurate f, once all before it do."""
    return max(SWITCH, 2 * tol)


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
    mixed = costs.rough.seconds(len(may)) + costs.accurate.seconds(len(wishes) - len(may))
    return may if mixed < costs.accurate.seconds(len(wishes)) else []
