"""Shorter steps where a step did not help: backtracking on the residual's norm, row by row.

Letters: n rows that a call is about, dim channels, ``g = f(z) − z``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.solvers.select import chosen
from deq_model.solvers.updates import Rows

SUFFICIENT = 1e-4
"""A step is good when it takes at least this share off the residual's norm (Armijo's c)."""

MOST_HALVINGS = 2
"""After so many a search ends with the best of the states that it tried.

Few, since what helps little at a quarter of the step helps no more at less: on random tanh maps
four halvings took twice the calls of two, and solved no more of them.
"""


@dataclass(frozen=True, slots=True)
class Pick:
    """What a search made of n rows.

    Attributes:
        searching: ``(n,)`` bool, rows whose step is to be halved and asked again.
        z: ``(n, dim)`` the state to go on from, for the others.
        g: ``(n, dim)`` its residual.
    """

    searching: Tensor
    z: Tensor
    g: Tensor


class Backtracking:
    """The searches of many rows.

    Quasi-Newton methods need not go downhill at every step; a search whose halvings are used up
    therefore goes on from the best state tried, and is no failure.
    """

    def __init__(self, *, capacity: int, dim: int, like: Tensor) -> None:
        """Makes room for ``capacity`` rows, on the device and in the dtype of ``like``."""
        self._halvings = torch.zeros(capacity, dtype=torch.long, device=like.device)
        self._norm = like.new_full((capacity,), torch.inf)  # of the best state tried
        self._z = like.new_zeros(capacity, dim)
        self._g = like.new_zeros(capacity, dim)

    def start(self, rows: Rows) -> None:
        """Forgets what the rows tried."""
        self._halvings[rows] = 0
        self._norm[rows] = torch.inf

    def pick(self, rows: Rows, z: Tensor, g: Tensor, *, before: Tensor, allowed: Tensor) -> Pick:
        """Judges the step to ``z``.

        Args:
            rows: the rows in question.
            z: ``(n, dim)`` states that f was asked at.
            g: ``(n, dim)`` residuals there; they may not be finite.
            before: ``(n,)`` the residual's norm where the step began.
            allowed: ``(n,)`` bool, rows whose residuals before and after the step compare.
        """
        norm = g.norm(dim=-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        bad = allowed & ~(norm <= (1 - SUFFICIENT) * before)
        tried = self._halvings[rows]
        searching = bad & (tried < MOST_HALVINGS)
        best = self._norm[rows]
        over = bad & ~searching & (best < norm)
        pick = Pick(searching, chosen(over, self._z[rows], z), chosen(over, self._g[rows], g))
        improved = searching & (norm < best)
        self._z[rows] = chosen(improved, z, self._z[rows])
        self._g[rows] = chosen(improved, g, self._g[rows])
        self._norm[rows] = torch.where(searching, torch.minimum(norm, best), torch.inf)
        self._halvings[rows] = torch.where(searching, tried + 1, 0)
        return pick
