"""The plain loop over dense blocks, for training and evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.solvers.options import SolverOptions, SolverStatus
from deq_model.solvers.rows import Best, Observation, RowSolver
from deq_model.solvers.select import chosen


@dataclass(frozen=True, slots=True)
class Solution:
    """Fixed points of a block of B samples with L rows each.

    Attributes:
        z_star: ``(B, L, D)``.
        nfe: calls of f, each on the whole block.
        residual: ``(B, L)`` at z_star, as ``stop_mode`` asks.
        status: ``(B, L)`` int64, a ``SolverStatus`` each.
        residual_by_call: ``(nfe,)``, at each call the mean over the rows; a row that is done
            counts the residual that it was accepted with, one that was not finite is inf.
        marked: ``(B, L, D)`` each, what ``z_star`` would be had the budget ended at the marks.
    """

    z_star: Tensor
    nfe: int
    residual: Tensor
    status: Tensor
    residual_by_call: Tensor
    marked: tuple[Tensor, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether every row came under the tolerance."""
        return bool((self.status == SolverStatus.CONVERGED).all())


@torch.no_grad()
def solve(
    f: Callable[[Tensor], Tensor],
    z_init: Tensor,
    options: SolverOptions,
    *,
    marks: Sequence[int] = (),
) -> Solution:
    """Solves ``z = f(z)`` where row i of a sample depends on rows ≤ i only.

    A row is done when its residual and those of all rows before it are under the tolerance in the
    same call; it is then frozen at the state that was measured, so that what is returned solves
    the equation to the tolerance, given the states before it.

    Args:
        f: ``(B, L, D)`` to the same.
        z_init: ``(B, L, D)`` starting states. ``(B, 1, L·D)`` makes one row of a whole block, as
            published.
        options: method, tolerance and budget.
        marks: ascending numbers of calls after which to note the states as well.

    Returns:
        The solution; a row that did not converge is at its best state, marked in ``status``.
    """
    solve = _Solve(z_init, options)
    marked: list[Tensor] = []
    while solve.nfe < options.max_nfe:
        over = solve.call(f)
        if solve.nfe in marks:
            marked.append(solve.z_star())
        if over:
            break
    z_star = solve.z_star()
    marked += [z_star] * (len(marks) - len(marked))
    return solve.solution(z_star, tuple(marked))


class _Solve:
    """The state of a loop."""

    def __init__(self, z_init: Tensor, options: SolverOptions) -> None:
        batch, length, dim = z_init.shape
        self._options = options
        self._solver = RowSolver(
            options.method,
            capacity=batch * length,
            dim=dim,
            depth=options.depth,
            device=z_init.device,
            dtype=z_init.dtype,
            restart=options.restart,
            stop_mode=options.stop_mode,
            line_search=options.line_search,
        )
        self._rows = slice(0, batch * length)
        self._solver.start(self._rows, z_init.reshape(-1, dim))
        self._accepted = torch.zeros_like(z_init)
        self._residual = z_init.new_full((batch, length), torch.inf)
        self._done = torch.zeros(batch, length, dtype=torch.bool, device=z_init.device)
        self._by_call: list[Tensor] = []

    @property
    def nfe(self) -> int:
        """Calls of f so far."""
        return len(self._by_call)

    def call(self, f: Callable[[Tensor], Tensor]) -> bool:
        """One call of f; whether every row is done."""
        done = self._done
        proposed = self._solver.propose(self._rows).view_as(self._accepted)
        z = chosen(done, self._accepted, proposed)
        # Rows are settled when everything before them was frozen before this call.
        settled = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], dim=1)
        # A frozen row was not asked at the solver's proposal: tell it that it is at rest.
        f_z = chosen(done, proposed, f(z))
        flat = f_z.reshape(-1, f_z.shape[-1])
        seen = self._solver.observe(self._rows, flat, settled=settled.flatten())
        now = self._asked(seen).view(done.shape)
        newly = (done | (now <= self._options.tol)).cumprod(1).bool() & ~done
        self._accepted = chosen(newly, z, self._accepted)
        self._residual = torch.where(newly, now, self._residual)
        self._by_call.append(torch.where(done, self._residual, now).mean())
        self._done = done | newly
        return bool(self._done.all())

    def _asked(self, seen: Observation | Best) -> Tensor:
        return seen.residual_rel if self._options.stop_mode == "rel" else seen.residual_abs

    def z_star(self) -> Tensor:
        """Accepted states, and the best ones of the rows that are not done."""
        best = self._solver.best(self._rows).z.view_as(self._accepted)
        return chosen(self._done, self._accepted, best)

    def solution(self, z_star: Tensor, marked: tuple[Tensor, ...]) -> Solution:
        """What has been reached."""
        left = self._asked(self._solver.best(self._rows)).view_as(self._residual)
        residual = torch.where(self._done, self._residual, left)
        status = torch.where(residual.isfinite(), SolverStatus.MAX_NFE, SolverStatus.NONFINITE)
        return Solution(
            z_star=z_star,
            nfe=self.nfe,
            residual=residual,
            status=torch.where(self._done, SolverStatus.CONVERGED, status),
            residual_by_call=torch.stack(self._by_call),
            marked=marked,
        )


def solve_block(
    f: Callable[[Tensor], Tensor],
    z_init: Tensor,
    options: SolverOptions,
    *,
    whole_block: bool,
    marks: Sequence[int] = (),
) -> Solution:
    """Solves token by token as ``solve`` does, or each sample's whole block as one vector.

    Args:
        f: ``(B, L, D)`` to the same.
        z_init: ``(B, L, D)`` starting states.
        options: method, tolerance and budget.
        whole_block: one vector of a sample, as published; residual and status are then those of
            its block at each of its rows.
        marks: as in ``solve``.
    """
    if not whole_block:
        return solve(f, z_init, options, marks=marks)
    batch, length, d_model = z_init.shape
    solution = solve(
        lambda z: f(z.view(batch, length, d_model)).reshape(batch, 1, -1),
        z_init.reshape(batch, 1, -1),
        options,
        marks=marks,
    )
    return dataclasses.replace(
        solution,
        z_star=solution.z_star.view(batch, length, d_model),
        residual=solution.residual.expand(batch, length),
        status=solution.status.expand(batch, length),
        marked=tuple(z.view(batch, length, d_model) for z in solution.marked),
    )
