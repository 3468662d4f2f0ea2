"""Update rules: the next state of every row from its last two states and residuals.

Letters: n rows, D channels, m depth. ``g = f(z) − z``. A rule keeps the history of all rows in
buffers made once, and is told which rows a call is about by an index tensor or a slice.
"""

from typing import Protocol

import torch
from torch import Tensor

from deq_model.solvers.options import Method
from deq_model.solvers.select import chosen, fill, finite_rows, seldom

Rows = Tensor | slice
"""Rows of the buffers: a slice, or distinct int64 indices."""


class UpdateRule(Protocol):
    """A quasi-Newton rule over independent rows."""

    def forget(self, rows: Rows, which: Tensor | None = None) -> None:
        """Empties the history of ``rows``, of those where ``which`` ``(n,)`` bool is true."""

    def step(
        self, rows: Rows, change: Tensor, g: Tensor, fresh: Tensor, most: int | None = None
    ) -> Tensor:
        """The change of z to make next.

        Args:
            rows: which rows the other arguments are about.
            change: ``(n, 2, D)`` the last change of z, and the change of g that it caused.
            g: ``(n, D)`` the residual now.
            fresh: ``(n,)`` bool, rows for which ``change`` means nothing.
            most: no row made more steps since it last forgot all; None where that is not known.

        Returns:
            ``(n, D)``. It may not be finite, where numbers are too large or too small to divide.
        """


class Picard:
    """Plain iteration: ``z ← f(z)``."""

    def forget(self, rows: Rows, which: Tensor | None = None) -> None:
        """There is no history."""

    def step(
        self, rows: Rows, change: Tensor, g: Tensor, fresh: Tensor, most: int | None = None
    ) -> Tensor:
        """``Δz = g``."""
        return g


class Broyden:
    """Broyden's good method, per row: ``B ← B + (Δz − BΔg) ΔzᵀB / (Δzᵀ B Δg)``, ``z ← z − Bg``.

    The inverse Jacobian of g starts as −1 and is kept as ``B = −1 + Σ u_j v_jᵀ``. When its m terms
    are used up a row starts again from −1: overwriting the oldest term instead diverges, since
    later terms were made with it.

    Attributes:
        terms: ``(capacity, m, 2, D)``, u and v of each row.
        count: ``(capacity,)`` int64, how many terms of a row mean something.
    """

    def __init__(self, *, capacity: int, dim: int, depth: int, like: Tensor) -> None:
        self.terms = like.new_zeros(capacity, depth, 2, dim)  # u and v
        self.count = torch.zeros(capacity, dtype=torch.long, device=like.device)
        self._depth = depth
        slots = torch.arange(depth, device=like.device)
        self._dead = slots >= torch.arange(depth + 1, device=like.device)[:, None]

    def forget(self, rows: Rows, which: Tensor | None = None) -> None:
        """Back to ``B = −1``: terms at and above a row's count are never read."""
        if which is None:
            fill(self.count, rows, 0)
        else:
            self.count[rows] = self.count[rows].masked_fill(which, 0)

    def step(
        self, rows: Rows, change: Tensor, g: Tensor, fresh: Tensor, most: int | None = None
    ) -> Tensor:
        """One rank-one update, then ``Δz = −B g``."""
        count, used = self._lengths(rows, most)
        u, v = self.terms[rows, :used].unbind(2)
        dead = self._dead[count, None, :used]
        dz, dg = change[:, :1], change[:, 1:]
        pair = torch.cat([dg, g[:, None]], dim=1)
        v_new = torch.baddbmm(dz, _weights(u, dz, dead), v, beta=-1)
        b_dg, b_g = torch.baddbmm(pair, _weights(v, pair, dead), u, beta=-1).unbind(1)
        bottom, along_g = (pair @ v_new.mT).unbind(1)
        u_new = (change[:, 0] - b_dg) / bottom
        # Where the bottom is not finite v may not be either, though u is: it was divided by it.
        usable = ~fresh & bottom.isfinite().squeeze(1) & finite_rows(u_new)
        if seldom(~usable):
            # Terms above a row's count are weighed with 0, and 0 · NaN is NaN: none may be stored.
            without = ~usable[:, None]
            u_new, along_g = u_new.masked_fill(without, 0.0), along_g.masked_fill(without, 0.0)
            v_new = v_new.masked_fill(without[..., None], 0.0)
        step = -torch.addcmul(b_g, u_new, along_g)
        self._write(rows, count, u_new, v_new.squeeze(1), usable)
        return step

    def _lengths(self, rows: Rows, bound: int | None) -> tuple[Tensor, int]:
        """Terms of each row, where full ones start again, and the most that there may be."""
        count = self.count[rows]
        if bound is not None or count.device.type != "cpu":  # where nobody waits for numbers
            most = self._depth if bound is None else min(bound, self._depth)
            return count.masked_fill(count >= self._depth, 0), most
        most = int(count.max()) if len(count) else 0
        if most == self._depth:
            count = count.masked_fill(count >= self._depth, 0)
            most = int(count.max())
        return count, most

    def _write(self, rows: Rows, count: Tensor, u: Tensor, v: Tensor, usable: Tensor) -> None:
        index = _row_index(rows, self.count)
        self.terms[index, count] = torch.stack([u, v], dim=1)
        self.count[rows] = count + usable


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

    def forget(self, rows: Rows, which: Tensor | None = None) -> None:
        """Back to plain iteration: slots at and above a row's count are never read."""
        if which is None:
            fill(self._count, rows, 0)
        else:
            self._count[rows] = self._count[rows].masked_fill(which, 0)

    def step(
        self, rows: Rows, change: Tensor, g: Tensor, fresh: Tensor, most: int | None = None
    ) -> Tensor:
        """Stores the difference over the oldest one, then solves for γ."""
        dz, dg = change.unbind(1)
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
    return torch.bmm(x, terms.mT).masked_fill(dead, 0.0)
