"""The state of many independent solves, one per row, and the two moves that drive them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.solvers.options import Method
from deq_model.solvers.updates import Rows, make_rule


@dataclass(frozen=True, slots=True)
class Observation:
    """What one call of f told about n rows.

    Attributes:
        residual_rel: ``(n,)`` ``‖f(z) − z‖ / ‖f(z)‖``, inf where f(z) is not finite.
        residual_abs: ``(n,)`` ``‖f(z) − z‖``, likewise.
    """

    residual_rel: Tensor
    residual_abs: Tensor


@dataclass(frozen=True, slots=True)
class Best:
    """The best state of n rows so far.

    Attributes:
        z: ``(n, dim)``; the starting state of a row that never saw a finite f(z).
        residual_rel: ``(n,)``, inf for such a row.
        residual_abs: ``(n,)``, inf for such a row.
    """

    z: Tensor
    residual_rel: Tensor
    residual_abs: Tensor


class RowSolver:
    """Solves ``z = f(z)`` row by row: ``propose`` a z, ``observe`` f(z).

    A row is a token, or a whole flattened block: the solver does not know. It costs one call of f
    per observation. Rows may begin and end at different times (``start``). A proposal is always
    finite. A row whose residual is not finite, or ``restart`` times its least one, goes back to its
    best state, forgets its history and takes a plain step, half as long each time it happens.
    """

    def __init__(
        self,
        method: Method,
        *,
        capacity: int,
        dim: int,
        depth: int,
        device: torch.device,
        dtype: torch.dtype,
        restart: float = 100.0,
    ) -> None:
        """Makes room for ``capacity`` rows of ``dim`` channels."""
        self._restart = restart
        like = torch.zeros((), device=device, dtype=dtype)
        self._rule = make_rule(method, capacity=capacity, dim=dim, depth=depth, like=like)
        self._z = like.new_zeros(capacity, dim)
        self._last_z = like.new_zeros(capacity, dim)
        self._last_g = like.new_zeros(capacity, dim)
        self._best_z = like.new_zeros(capacity, dim)
        self._best_g = like.new_zeros(capacity, dim)
        self._best_rel = like.new_full((capacity,), torch.inf)
        self._best_abs = like.new_full((capacity,), torch.inf)
        self._damping = like.new_ones(capacity)
        self._fresh = torch.ones(capacity, dtype=torch.bool, device=device)

    def start(self, rows: Rows, z_init: Tensor) -> None:
        """Begins new solves in ``rows`` from ``z_init`` (n, dim); what they held is forgotten."""
        usable = z_init.isfinite()
        z = torch.where(usable, z_init, torch.zeros_like(z_init))
        self._z[rows] = z
        self._best_z[rows] = z
        self._best_g[rows] = 0.0
        self._best_rel[rows] = torch.inf
        self._best_abs[rows] = torch.inf
        self._damping[rows] = 1.0
        self._fresh[rows] = True
        self._rule.forget(rows, torch.ones_like(z[:, 0], dtype=torch.bool))

    def propose(self, rows: Rows) -> Tensor:
        """The states at which f is wanted next, ``(n, dim)``, always finite."""
        return self._z[rows]

    def observe(self, rows: Rows, f_z: Tensor, *, settled: Tensor | None = None) -> Observation:
        """Takes f at the proposed states and moves on.

        Args:
            rows: the rows that were proposed.
            f_z: ``(n, dim)``.
            settled: ``(n,)`` bool, rows whose f did not change since their last observation. What
                an unsettled row knew of its best state was about another f: its best becomes its
                present state. None means all.

        Returns:
            The residuals at the proposed states.
        """
        z = self._z[rows]
        g = f_z.to(z.dtype) - z
        residual_abs = g.norm(dim=-1)
        residual_rel = residual_abs / (z + g).norm(dim=-1).clamp(min=1e-9)
        finite = residual_abs.isfinite() & residual_rel.isfinite()
        residual_abs = residual_abs.where(finite, residual_abs.new_tensor(torch.inf))
        residual_rel = residual_rel.where(finite, residual_rel.new_tensor(torch.inf))
        worse = ~finite | (residual_rel > self._restart * self._best_rel[rows])
        self._remember(rows, z, g, residual_rel, residual_abs, settled)
        self._advance(rows, z, g, worse)
        return Observation(residual_rel, residual_abs)

    def _remember(
        self,
        rows: Rows,
        z: Tensor,
        g: Tensor,
        residual_rel: Tensor,
        residual_abs: Tensor,
        settled: Tensor | None,
    ) -> None:
        better = residual_rel < self._best_rel[rows]
        if settled is not None:
            better = better | (~settled & residual_rel.isfinite())
        wide = better[:, None]
        self._best_z[rows] = torch.where(wide, z, self._best_z[rows])
        self._best_g[rows] = torch.where(wide, g, self._best_g[rows])
        self._best_rel[rows] = torch.where(better, residual_rel, self._best_rel[rows])
        self._best_abs[rows] = torch.where(better, residual_abs, self._best_abs[rows])

    def _advance(self, rows: Rows, z: Tensor, g: Tensor, worse: Tensor) -> None:
        if bool(worse.any()):
            self._rule.forget(rows, worse)
            self._damping[rows] = torch.where(worse, 0.5, 1.0) * self._damping[rows]
        damping = self._damping[rows][:, None]
        wide = worse[:, None]
        base = torch.where(wide, self._best_z[rows], z)
        g = torch.where(wide, self._best_g[rows], g)
        fresh = self._fresh[rows] | worse
        dz, dg = z - self._last_z[rows], g - self._last_g[rows]
        step = self._rule.step(rows, dz, dg, g, fresh)
        step = torch.where(fresh[:, None], damping * g, step)
        following = base + step
        sound = following.isfinite().all(-1, keepdim=True)
        self._z[rows] = torch.where(sound, following, self._best_z[rows])
        self._last_z[rows] = base
        self._last_g[rows] = g
        # After a restart the state observed next follows from (base, g): a true difference.
        self._fresh[rows] = False

    def best(self, rows: Rows) -> Best:
        """The best states seen, with their residuals."""
        return Best(self._best_z[rows], self._best_rel[rows], self._best_abs[rows])
