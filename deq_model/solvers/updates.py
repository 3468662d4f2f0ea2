"""Update rules: the next state of every row from its last two states and residuals.

Letters: n rows, D channels, m depth. ``g = f(z) − z``. A rule keeps the history of all rows in
buffers made once, and is told which rows a call is about by an index tensor or a slice.
"""

from typing import Protocol

import torch
from torch import Tensor

from deq_model.solvers.options import Method

Rows = Tensor | slice
_TINY = 1e-30


class UpdateRule(Protocol):
    """A quasi-Newton rule over independent rows."""

    def forget(self, rows: Rows, which: Tensor) -> None:
        """Empties the history of those ``rows`` where ``which`` (n,) is true."""

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """The change of z to make next.

        Args:
            rows: which rows the other arguments are about.
            dz: ``(n, D)`` last change of z.
            dg: ``(n, D)`` the change of g that it caused.
            g: ``(n, D)`` the residual now.
            fresh: ``(n,)`` bool, rows for which dz and dg mean nothing.

        Returns:
            ``(n, D)``.
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
        """Back to ``B = −1``."""
        keep = (~which).to(self._u.dtype)[:, None, None]
        # V may stay: a term with u = 0 adds nothing.
        self._u[rows] = torch.where(which[:, None, None], torch.zeros_like(keep), self._u[rows])
        self._count[rows] = torch.where(which, 0, self._count[rows])

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """One rank-one update, then ``Δz = −B g``."""
        count = self._count[rows]
        full = count >= self._depth
        if bool(full.any()):
            self.forget(rows, full)
            count = self._count[rows]
        used = int(count.max())
        u, v = self._u[rows, :used], self._v[rows, :used]
        v_new = torch.einsum("nm,nmd->nd", torch.einsum("nmd,nd->nm", u, dz), v) - dz
        b_dg = torch.einsum("nm,nmd->nd", torch.einsum("nmd,nd->nm", v, dg), u) - dg
        bottom = (v_new * dg).sum(-1, keepdim=True)
        u_new = (dz - b_dg) / bottom
        usable = u_new.isfinite().all(-1) & (bottom.abs().squeeze(-1) > _TINY) & ~fresh
        u_new = torch.where(usable[:, None], u_new, torch.zeros_like(u_new))
        v_new = torch.where(usable[:, None], v_new, torch.zeros_like(v_new))
        step = g - torch.einsum("nm,nmd->nd", torch.einsum("nmd,nd->nm", v, g), u)
        step = step - u_new * (v_new * g).sum(-1, keepdim=True)
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

    def __init__(self, *, capacity: int, dim: int, depth: int, like: Tensor) -> None:
        self._dz = like.new_zeros(capacity, depth, dim)
        self._dg = like.new_zeros(capacity, depth, dim)
        self._count = torch.zeros(capacity, dtype=torch.long, device=like.device)
        self._depth = depth

    def forget(self, rows: Rows, which: Tensor) -> None:
        """Back to plain iteration."""
        mask = which[:, None, None]
        for buffer in (self._dz, self._dg):
            buffer[rows] = torch.where(mask, torch.zeros_like(buffer[rows]), buffer[rows])
        self._count[rows] = torch.where(which, 0, self._count[rows])

    def step(self, rows: Rows, dz: Tensor, dg: Tensor, g: Tensor, fresh: Tensor) -> Tensor:
        """Stores the difference over the oldest one, then solves for γ."""
        index = _row_index(rows, self._count)
        slot = self._count[rows] % self._depth
        keep = ~fresh[:, None]
        self._dz[index, slot] = torch.where(keep, dz, self._dz[index, slot])
        self._dg[index, slot] = torch.where(keep, dg, self._dg[index, slot])
        self._count[rows] = self._count[rows] + ~fresh
        past_z, past_g = self._dz[rows], self._dg[rows]
        gram = past_g @ past_g.transpose(1, 2)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        # An empty slot has a zero difference; a one on its diagonal makes its weight zero.
        lift = torch.where(diagonal > 0, self.RIDGE * diagonal, torch.ones_like(diagonal))
        right = torch.einsum("nmd,nd->nm", past_g, g)
        gamma, failed = torch.linalg.solve_ex(gram + torch.diag_embed(lift), right[..., None])
        gamma = torch.where((failed == 0)[:, None], gamma.squeeze(-1), torch.zeros_like(right))
        return g - torch.einsum("nm,nmd->nd", gamma, past_z + past_g)


def make_rule(method: Method, *, capacity: int, dim: int, depth: int, like: Tensor) -> UpdateRule:
    """The rule of a method, with room for ``capacity`` rows, on the device and dtype of ``like``."""
    if method == "picard":
        return Picard()
    kind = Broyden if method == "broyden" else Anderson
    return kind(capacity=capacity, dim=dim, depth=depth, like=like)


def _row_index(rows: Rows, count: Tensor) -> Tensor:
    if isinstance(rows, slice):
        return torch.arange(count.shape[0], device=count.device)[rows]
    return rows
