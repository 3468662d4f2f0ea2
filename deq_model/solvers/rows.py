"""The state of many independent solves, one per row, and the two moves that drive them.

Letters: n rows that a call is about, dim channels. ``rows`` names them, by a slice or by distinct
int64 indices; a tensor that is returned is never a view of the solver's state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.solvers.line_search import Backtracking
from deq_model.solvers.options import Method, StopMode
from deq_model.solvers.select import chosen, finite_rows
from deq_model.solvers.updates import Rows, make_rule

LEAST_NORM = 1e-9
"""A norm of f(z) below this counts as this, so that f(z) = 0 has a relative residual."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one call of f told about n rows.

    Attributes:
        residual_rel: ``(n,)`` ``‖f(z) − z‖ / ‖f(z)‖``, inf where f(z) or its norm is not finite.
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
    Until f has been finite once, a row stays at its starting state.

    With ``line_search`` a step that does not lessen the residual is halved and asked again, before
    the rule goes on; not where the row was unsettled, whose residuals are of different f.
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
        stop_mode: StopMode = "rel",
        line_search: bool = False,
    ) -> None:
        """Makes room for ``capacity`` rows of ``dim`` channels.

        The other arguments are those of ``SolverOptions``; ``stop_mode`` says which residual makes
        a state the best, and which one's growth a restart.
        """
        self._restart = restart
        self._by_rel = stop_mode == "rel"
        like = torch.zeros((), device=device, dtype=dtype)
        self._rule = make_rule(method, capacity=capacity, dim=dim, depth=depth, like=like)
        search = Backtracking(capacity=capacity, dim=dim, like=like) if line_search else None
        self._search = search
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
        """Begins new solves in ``rows``; what they held is forgotten.

        Args:
            rows: the n rows.
            z_init: ``(n, dim)`` starting states; a channel that is not finite starts at zero.
        """
        z = z_init.to(self._z.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self._z[rows] = z
        self._best_z[rows] = z
        self._best_g[rows] = 0.0
        self._best_rel[rows] = torch.inf
        self._best_abs[rows] = torch.inf
        self._damping[rows] = 1.0
        self._fresh[rows] = True
        self._rule.forget(rows, torch.ones_like(self._fresh[rows]))
        if self._search is not None:
            self._search.start(rows)

    def propose(self, rows: Rows) -> Tensor:
        """The states at which f is wanted next, ``(n, dim)``, always finite."""
        return _taken(self._z, rows)

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
        seen = _measured(z, g)
        now = self._ranking(seen.residual_rel, seen.residual_abs)
        # A copy: what it is compared with below is the best before this call.
        least = _taken(self._ranking(self._best_rel, self._best_abs), rows)
        better = now < least
        if settled is not None:
            better = better | (~settled & now.isfinite())
        self._remember(rows, better, z, g, seen)
        if self._search is None:
            self._go_on(rows, z, g, now, least)
        else:
            self._search_or_go_on(rows, z, g, least, settled)
        return seen

    def _search_or_go_on(
        self, rows: Rows, z: Tensor, g: Tensor, least: Tensor, settled: Tensor | None
    ) -> None:
        """Halves the steps that did not help; the other rows go on."""
        assert self._search is not None
        last_z, last_g, last_fresh = self._last_z[rows], self._last_g[rows], self._fresh[rows]
        allowed = ~last_fresh if settled is None else ~last_fresh & settled
        pick = self._search.pick(rows, z, g, before=last_g.norm(dim=-1), allowed=allowed)
        held = pick.searching
        wide = held[:, None]
        shorter = torch.lerp(last_z, z, 0.5)
        kept = last_z.clone(), last_g.clone(), last_fresh.clone()
        seen = _measured(pick.z, pick.g)
        self._go_on(
            rows,
            pick.z,
            pick.g,
            self._ranking(seen.residual_rel, seen.residual_abs),
            least,
            held=held,
        )
        self._z[rows] = torch.where(wide, shorter, self._z[rows])
        self._last_z[rows] = torch.where(wide, kept[0], self._last_z[rows])
        self._last_g[rows] = torch.where(wide, kept[1], self._last_g[rows])
        self._fresh[rows] = torch.where(held, kept[2], self._fresh[rows])

    def _go_on(
        self,
        rows: Rows,
        z: Tensor,
        g: Tensor,
        now: Tensor,
        least: Tensor,
        *,
        held: Tensor | None = None,
    ) -> None:
        """Makes the next step from ``(z, g)``, or from the best state where that is far better.

        Args:
            rows: the rows in question.
            z: ``(n, dim)`` states.
            g: ``(n, dim)`` their residuals.
            now: ``(n,)`` size of the residuals.
            least: ``(n,)`` of the best states before this call.
            held: ``(n,)`` bool, rows whose history and damping must stay as they are.
        """
        worse = now.isinf() | (now > self._restart * least)
        if held is not None:
            worse = worse & ~held
        # A row that has seen nothing finite has no step that could have been too long.
        shorter = worse & least.isfinite()
        self._damping[rows] = torch.where(shorter, 0.5, 1.0) * self._damping[rows]
        self._advance(rows, z, g, worse, held)

    def _ranking(self, by_rel: Tensor, by_abs: Tensor) -> Tensor:
        return by_rel if self._by_rel else by_abs

    def _remember(
        self, rows: Rows, better: Tensor, z: Tensor, g: Tensor, seen: Observation
    ) -> None:
        self._best_z[rows] = chosen(better, z, self._best_z[rows])
        self._best_g[rows] = chosen(better, g, self._best_g[rows])
        self._best_rel[rows] = torch.where(better, seen.residual_rel, self._best_rel[rows])
        self._best_abs[rows] = torch.where(better, seen.residual_abs, self._best_abs[rows])

    def _advance(
        self, rows: Rows, z: Tensor, g: Tensor, worse: Tensor, held: Tensor | None
    ) -> None:
        best_z = self._best_z[rows]
        base = chosen(worse, best_z, z)
        g = chosen(worse, self._best_g[rows], g)
        fresh = self._fresh[rows] | worse
        if held is not None:
            fresh = fresh | held
        dz, dg = z - self._last_z[rows], g - self._last_g[rows]
        self._rule.forget(rows, worse)
        step = self._rule.step(rows, dz, dg, g, fresh)
        lost = ~finite_rows(step)
        self._rule.forget(rows, lost if held is None else lost & ~held)
        plain = fresh | lost
        following = base + chosen(plain, self._damping[rows][:, None] * g, step)
        sound = finite_rows(following)
        self._last_z[rows] = base  # before the state moves, of which base may be a view
        self._last_g[rows] = g
        self._z[rows] = chosen(sound, following, best_z)
        # After a restart the state observed next follows from (base, g): a true difference. Where
        # nothing finite was seen, g is no residual.
        self._fresh[rows] = self._best_rel[rows].isinf()

    def best(self, rows: Rows) -> Best:
        """The best states seen, with their residuals."""
        return Best(
            _taken(self._best_z, rows),
            _taken(self._best_rel, rows),
            _taken(self._best_abs, rows),
        )


def _measured(z: Tensor, g: Tensor) -> Observation:
    """Both residuals of states ``(n, dim)``."""
    residual_abs = g.norm(dim=-1)
    residual_rel = residual_abs / (z + g).norm(dim=-1).clamp(min=LEAST_NORM)
    broken = ~(residual_abs.isfinite() & residual_rel.isfinite())
    return Observation(
        residual_rel.masked_fill(broken, torch.inf), residual_abs.masked_fill(broken, torch.inf)
    )


def _taken(buffer: Tensor, rows: Rows) -> Tensor:
    """A copy of some rows: a slice alone would be a view, that the next observation changes."""
    return buffer[rows].clone() if isinstance(rows, slice) else buffer[rows]
