"""Update rules: the next state of every row from its last two states and residuals.

Letters: n rows, D channels, m depth. ``g = f(z) − z``. A rule keeps the history of all rows in
buffers made once, and is told which rows a call is about by an index tensor or a slice.
"""

from typing import Protocol

import torch
from torch import Tensor

from deq_model.solvers.options import Method
from deq_model.solvers.select import chosen, finite_rows

Rows = Tensor | slice
"""Rows of the buffers: a slice, or distinct int64 indices."""


class UpdateRule(Protocol):
    """A quasi-Newton rule over independent rows."""

    def forget(self, rows: Rows, which: Tensor) -> None:
        """Empties the history of those ``rows`` where ``which`` ``(n,)`` bool is true."""

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """The change of z to make next.

        Args:
            rows: which rows the other arguments are about.
            dz: ``(n, D)`` last change of z.
            dg: ``(n, D)`` the change of g that it caused.
            g: ``(n, D)`` the residual now.
            fresh: ``(n,)`` bool, rows for which dz and dg mean nothing.

        Returns:
            ``(n, D)``. It may not be finite, where numbers are too large or too small to divide.
        """


class Picard:
    """Plain iteration: ``z ← f(z)``."""

    def forget(self, rows: Rows, which: Tensor) -> None:
        """There is no history."""

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """``Δz = g``."""
        return g


class Broyden:
    """Broyden's good method, per row: ``B ← B + (Δz − BΔg) ΔzᵀB / (Δzᵀ B Δg)``, ``z ← z − Bg``.

    The inverse Jacobian of g starts as −1 and is kept as ``B = −1 + Σ u_j v_jᵀ``. When its m terms
    are used up a row starts again from −1: overwriting the oldest term instead diverges, since
    later terms were made with it.
    """

    def __init__(self, *, capacity: int, dim: int, depth: int, like: Tensor) -> None:
        self._u = like.new_zeros(capacity, depth, dim)
        self._v = like.new_zeros(capacity, depth, dim)
        self._count = torch.zeros(capacity, dtype=torch.long, device=like.device)
        self._depth = depth

    def forget(self, rows: Rows, which: Tensor) -> None:
        """Back to ``B = −1``: terms at and above a row's count are never read."""
        self._count[rows] = torch.where(which, 0, self._count[rows])

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """One rank-one update, then ``Δz = −B g``."""
        count = self._count[rows]
        count = torch.where(count >= self._depth, 0, count)
        used = int(count.max()) if len(count) else 0
        dead = torch.arange(used, device=count.device) >= count[:, None]
        u, v = self._u[rows, :used], self._v[rows, :used]
        v_new = _combined(_weights(u, dz[:, None], dead), v).squeeze(1) - dz
        pair = torch.stack([dg, g], dim=1)
        b_dg, b_g = (_combined(_weights(v, pair, dead), u) - pair).unbind(1)
        bottom = (v_new * dg).sum(-1, keepdim=True)
        u_new = (dz - b_dg) / bottom
        # Where the bottom is not finite v may not be either, though u is: it was divided by it.
        usable = finite_rows(u_new) & bottom.isfinite().squeeze(-1) & ~fresh
        u_new = chosen(usable, u_new, torch.zeros_like(u_new))
        v_new = chosen(usable, v_new, torch.zeros_like(v_new))
        step = -b_g - u_new * (v_new * g).sum(-1, keepdim=True)
        self._write(rows, count, u_new, v_new, usable)  # u and v may be views of what it changes
        return step

    def _write(self, rows: Rows, count: Tensor, u: Tensor, v: Tensor, usable: Tensor) -> None:
        index = _row_index(rows, self._count)
        self._u[index, count] = u
        self._v[index, count] = v
        self._count[rows] = count + usable


class Anderson:
    """Anderson's acceleration, per row: the combination of the last steps with least residual.

    ``γ = argmin ‖g − ΔG γ‖``, ``Δz = g − (ΔZ + ΔG) γ``, over the last m differences, with a
    regularisation that is relative to each difference's size, so that it does not depend on scale.
    """

    RIDGE = 1e-8
    """Of float64; in float32 ten roundings, since less would be rounded away."""

    def __init__(self, *, capacity: int, dim: int, depth: int, like: Tensor) -> None:
        self._sum = like.new_zeros(capacity, depth, dim)  # of ΔZ and ΔG
        self._dg = like.new_zeros(capacity, depth, dim)
        self._count = torch.zeros(capacity, dtype=torch.long, device=like.device)
        self._slots = torch.arange(depth, device=like.device)
        self._ridge = max(self.RIDGE, 10 * torch.finfo(like.dtype).eps)

    def forget(self, rows: Rows, which: Tensor) -> None:
        """Back to plain iteration: slots at and above a row's count are never read."""
        self._count[rows] = torch.where(which, 0, self._count[rows])

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """Stores the difference over the oldest one, then solves for γ."""
        index = _row_index(rows, self._count)
        slot = self._count[rows] % len(self._slots)
        # A fresh row has no history, and its count stays: what it writes is read by nobody, but
        # must be finite, since nothing times NaN is NaN.
        nothing = torch.zeros_like(g)
        self._sum[index, slot] = chosen(fresh, nothing, dz + dg)
        self._dg[index, slot] = chosen(fresh, nothing, dg)
        count = self._count[rows] + ~fresh
        self._count[rows] = count
        gamma = self._weights(self._dg[rows], g, self._slots >= count[:, None])
        return g - (gamma[:, None] @ self._sum[rows]).squeeze(1)

    def _weights(self, past_g: Tensor, g: Tensor, dead: Tensor) -> Tensor:
        """γ ``(n, m)``: zero for ``dead`` slots ``(n, m)``, and where there is no solution."""
        gram = past_g @ past_g.transpose(1, 2)
        gram = gram.masked_fill(dead[:, :, None] | dead[:, None, :], 0.0)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        lift = torch.where(diagonal > 0, self._ridge * diagonal, torch.ones_like(diagonal))
        right = (past_g * g[:, None]).sum(-1).masked_fill(dead, 0.0)
        gamma, failed = torch.linalg.solve_ex(gram + torch.diag_embed(lift), right[..., None])
        return torch.where((failed == 0)[:, None], gamma.squeeze(-1), torch.zeros_like(right))


def make_rule(method: Method, *, capacity: int, dim: int, depth: int, like: Tensor) -> UpdateRule:
    """The rule of a method, for ``capacity`` rows, on the device and in the dtype of ``like``."""
    if method == "picard":
        return Picard()
    kind = Broyden if method == "broyden" else Anderson
    return kind(capacity=capacity, dim=dim, depth=depth, like=like)


def _row_index(rows: Rows, count: Tensor) -> Tensor:
    if isinstance(rows, slice):
        return torch.arange(count.shape[0], device=count.device)[rows]
    return rows


def _weights(terms: Tensor, x: Tensor, dead: Tensor) -> Tensor:
    """Products ``(n, k, m)`` of x ``(n, k, D)`` and terms ``(n, m, D)``; zero for ``dead`` ones."""
    return (x @ terms.transpose(1, 2)).masked_fill(dead[:, None], 0.0)


def _combined(weights: Tensor, terms: Tensor) -> Tensor:
    """Sums of terms ``(n, m, D)`` by weights ``(n, k, m)``: ``(n, k, D)``."""
    return weights @ terms
