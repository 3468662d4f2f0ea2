"""The plain loop over dense blocks, for training and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.solvers.options import SolverOptions, SolverStatus
from deq_model.solvers.rows import RowSolver


@dataclass(frozen=True, slots=True)
class Solution:
    """Fixed points of a block of B samples with L rows each.

    Attributes:
        z_star: ``(B, L, D)``.
        nfe: calls of f, each on the whole block.
        residual: ``(B, L)`` at z_star, as ``stop_mode`` asks.
        status: ``(B, L)`` int64, a ``SolverStatus`` each.
    """

    z_star: Tensor
    nfe: int
    residual: Tensor
    status: Tensor

    @property
    def converged(self) -> bool:
        """Whether every row came under the tolerance."""
        return bool((self.status == SolverStatus.CONVERGED).all())


def solve(f: Callable[[Tensor], Tensor], z_init: Tensor, options: SolverOptions) -> Solution:
    """Solves ``z = f(z)`` where row i of a sample depends on rows ≤ i only.

    A row is done when its residual and those of all rows before it are under the tolerance in the
    same call; it is then frozen at the state that was measured, so that what is returned solves
    the equation to the tolerance, given the states before it.

    Args:
        f: ``(B, L, D)`` to the same.
        z_init: ``(B, L, D)`` starting states. ``(B, 1, L·D)`` makes one row of a whole block, as
            published.
        options: method, tolerance and budget.

    Returns:
        The solution; a row that did not converge is at its best state, marked in ``status``.
    """
    batch, length, dim = z_init.shape
    solver = RowSolver(
        options.method,
        capacity=batch * length,
        dim=dim,
        depth=options.depth,
        device=z_init.device,
        dtype=z_init.dtype,
        restart=options.restart,
        stop_mode=options.stop_mode,
    )
    rows = slice(0, batch * length)
    solver.start(rows, z_init.reshape(-1, dim))
    z_star = torch.zeros_like(z_init)
    residual = z_init.new_full((batch, length), torch.inf)
    done = torch.zeros(batch, length, dtype=torch.bool, device=z_init.device)
    nfe = 0
    while nfe < options.max_nfe:
        proposed = solver.propose(rows).view_as(z_init)
        z = torch.where(done[..., None], z_star, proposed)
        # Rows are settled when everything before them was frozen before this call.
        settled = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], dim=1)
        f_z = f(z)
        nfe += 1
        # A frozen row was not asked at the solver's proposal: tell it that it is at rest.
        f_z = torch.where(done[..., None], proposed, f_z)
        seen = solver.observe(rows, f_z.reshape(-1, dim), settled=settled.flatten())
        now = seen.residual_rel if options.stop_mode == "rel" else seen.residual_abs
        now = now.view(batch, length)
        newly = (done | (now <= options.tol)).cumprod(1).bool() & ~done
        z_star = torch.where(newly[..., None], z, z_star)
        residual = torch.where(newly, now, residual)
        done = done | newly
        if bool(done.all()):
            break
    best = solver.best(rows)
    left = best.residual_rel if options.stop_mode == "rel" else best.residual_abs
    residual = torch.where(done, residual, left.view(batch, length))
    status = torch.where(residual.isfinite(), SolverStatus.MAX_NFE, SolverStatus.NONFINITE)
    return Solution(
        z_star=torch.where(done[..., None], z_star, best.z.view_as(z_star)),
        nfe=nfe,
        residual=residual,
        status=torch.where(done, SolverStatus.CONVERGED, status),
    )


def solve_block(
    f: Callable[[Tensor], Tensor], z_init: Tensor, options: SolverOptions, *, whole_block: bool
) -> Solution:
    """Solves token by token as ``solve`` does, or each sample's whole block as one vector.

    Args:
        f: ``(B, L, D)`` to the same.
        z_init: ``(B, L, D)`` starting states.
        options: method, tolerance and budget.
        whole_block: one vector of a sample, as published; residual and status are then those of
            its block at each of its rows.
    """
    if not whole_block:
        return solve(f, z_init, options)
    batch, length, d_model = z_init.shape
    solution = solve(
        lambda z: f(z.view(batch, length, d_model)).reshape(batch, 1, -1),
        z_init.reshape(batch, 1, -1),
        options,
    )
    return Solution(
        z_star=solution.z_star.view(batch, length, d_model),
        nfe=solution.nfe,
        residual=solution.residual.expand(batch, length),
        status=solution.status.expand(batch, length),
    )
