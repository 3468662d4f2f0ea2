"""The state of many independent solves, one per row, and the two moves that drive them.

Letters: n rows that a call is about, dim channels. ``rows`` names them, by a slice or by distinct
int64 indices; a tensor that is returned is never a view of the solver's state.
"""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deq_model.solvers.fused import FusedStep, can_fuse
from deq_model.solvers.line_search import Backtracking
from deq_model.solvers.native import NativeStep, can_run
from deq_model.solvers.options import Method, StopMode
from deq_model.solvers.select import chosen, fill, finite_rows, seldom
from deq_model.solvers.updates import Broyden, Rows, make_rule

LEAST_NORM = 1e-9
"""A norm of f(z) below this counts as this, so that f(z) = 0 has a relative residual."""

_NEXT = 0
_LAST = slice(1, 3)
_BEST = slice(3, 5)
"""A row's five vectors: the state to ask f at; the state and the residual that the last step began
from; the best state and its residual. They lie in one buffer, since a call on few rows costs as
much as the tensor operations it takes, whatever their size."""


_Step = TypeVar("_Step", FusedStep, NativeStep)


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
    finite; what is proposed after an observation is one step nearer than the state observed, as a
    rule, and may be taken for the answer where the residual was small. A row whose residual is not
    finite, or ``restart`` times its least one, goes back to its best state, forgets its history and
    takes a plain step, half as long each time it happens. Until f has been finite once, a row stays
    at its starting state.

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
        self._ranking = 0 if stop_mode == "rel" else 1
        like = torch.zeros((), device=device, dtype=dtype)
        self._rule = make_rule(method, capacity=capacity, dim=dim, depth=depth, like=like)
        search = Backtracking(capacity=capacity, dim=dim, like=like) if line_search else None
        self._search = search
        self._state = like.new_zeros(capacity, 5, dim)
        self._least = like.new_full((capacity, 2), torch.inf)  # relative and absolute, of the best
        self._damping = like.new_ones(capacity)
        plain = stop_mode == "rel" and not line_search
        self._fused: FusedStep | NativeStep | None = None
        if plain and can_fuse(device):
            self._fused = self.fused_step(FusedStep)
        elif plain and can_run(like):
            self._fused = self.fused_step(NativeStep)

    def fused_step(self, kind: type[_Step]) -> _Step | None:
        """The kernel that does what ``observe`` does, on this solver's rows; None for no such."""
        if not isinstance(self._rule, Broyden):
            return None
        return kind(
            state=self._state,
            least=self._least,
            damping=self._damping,
            terms=self._rule.terms,
            count=self._rule.count,
            restart=self._restart,
            least_norm=LEAST_NORM,
        )

    @property
    def is_fused(self) -> bool:
        """Whether ``advance`` is one kernel."""
        return self._fused is not None

    def start(self, rows: Rows, z_init: Tensor) -> None:
        """Begins new solves in ``rows``; what they held is forgotten.

        Args:
            rows: the n rows.
            z_init: ``(n, dim)`` starting states; a channel that is not finite starts at zero.
        """
        z = z_init.to(self._state.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        nothing = torch.zeros_like(z)
        self._state[rows] = torch.stack([z, nothing, nothing, z, nothing], dim=1)
        fill(self._least, rows, torch.inf)
        fill(self._damping, rows, 1.0)
        self._rule.forget(rows)
        if self._search is not None:
            self._search.start(rows)

    def forget(self, rows: Rows) -> None:
        """Forgets how f has changed with z in rows; where they stand they stay."""
        self._rule.forget(rows)

    def propose(self, rows: Rows) -> Tensor:
        """The states at which f is wanted next, ``(n, dim)``, always finite."""
        return _taken(self._state[:, _NEXT], rows)

    def observe(
        self,
        rows: Rows,
        f_z: Tensor,
        *,
        settled: Tensor | None = None,
        most: int | None = None,
    ) -> Observation:
        """Takes f at the proposed states and moves on.

        Args:
            rows: the rows that were proposed.
            f_z: ``(n, dim)``.
            settled: ``(n,)`` bool, rows whose f did not change since their last observation. What
                an unsettled row knew of its best state was about another f: its best becomes its
                present state. None means all.
            most: no row was observed more often since it began. Who knows spares the solver to
                look, and a GPU to read room for steps that no row has made.

        Returns:
            The residuals at the proposed states.
        """
        state, sizes = self._state[rows], self._least[rows]
        z = state[:, _NEXT]
        f_z = f_z.to(z.dtype)
        here = torch.stack([z, f_z - z], dim=1)
        seen = _measured(here[:, 1], f_z)
        now, least = self._ranked(seen), sizes[:, self._ranking]
        known = least if settled is None else least.where(settled, torch.inf)
        better = now < known
        best = chosen(better[:, None], here, state[:, _BEST])
        found = torch.stack([seen.residual_rel, seen.residual_abs], dim=1)
        found = found.where(better[:, None], sizes)
        turn = _Turn(rows, here, state[:, _LAST], best, now, least, most)
        moved = self._go_on(turn) if self._search is None else self._searched(turn, settled)
        self._keep(rows, *moved, best)
        self._least[rows] = found
        return seen

    def advance(
        self,
        rows: Tensor,
        f_z: Tensor,
        *,
        settled: Tensor,
        most: int,
        seen: Tensor,
        measured: Tensor,
    ) -> None:
        """Observes without asking the host for anything, into buffers that are given.

        Args:
            rows: as in ``observe``; one that nobody reads may be there more than once.
            f_z: ``(n, dim)`` in the dtype of states.
            settled: as in ``observe``.
            most: as in ``observe``.
            seen: ``(n, 2)``, takes the relative residuals, and the least ones of each row.
            measured: ``(n, dim)``, takes the proposed states.
        """
        if self._fused is not None:
            self._fused(rows, f_z, settled, seen=seen, measured=measured)
            return
        measured.copy_(self.propose(rows))
        residual = self.observe(rows, f_z, settled=settled, most=most).residual_rel
        seen.copy_(torch.stack([residual, self.least(rows)[:, 0]], dim=1))

    def _ranked(self, seen: Observation) -> Tensor:
        return (seen.residual_rel, seen.residual_abs)[self._ranking]

    def _keep(self, rows: Rows, following: Tensor, origin: Tensor, best: Tensor) -> None:
        """Writes the vectors of rows: where to go, where from, and the best."""
        if isinstance(rows, slice):  # parts, since a whole would have to be made first
            state = self._state[rows]
            state[:, _NEXT], state[:, _LAST], state[:, _BEST] = following, origin, best
        else:
            self._state[rows] = torch.cat([following[:, None], origin, best], dim=1)

    def _searched(self, turn: "_Turn", settled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Halves the steps that did not help; the other rows go on."""
        assert self._search is not None
        z, g = turn.here.unbind(1)
        fresh = turn.least.isinf()
        allowed = ~fresh if settled is None else ~fresh & settled
        before = turn.last[:, 1].norm(dim=-1)
        pick = self._search.pick(turn.rows, z, g, before=before, allowed=allowed)
        picked = _measured(pick.g, pick.z + pick.g)
        turn = dataclasses.replace(
            turn, here=torch.stack([pick.z, pick.g], dim=1), now=self._ranked(picked)
        )
        following, origin = self._go_on(turn, held=pick.searching)
        shorter = torch.lerp(turn.last[:, 0], z, 0.5)
        wide = pick.searching[:, None]
        return shorter.where(wide, following), turn.last.where(wide[..., None], origin)

    def _go_on(self, turn: "_Turn", *, held: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Makes the next step, from the best state where that is far better than the present one.

        Args:
            turn: what there is to go on.
            held: ``(n,)`` bool, rows whose history and damping must stay as they are.

        Returns:
            The next states ``(n, dim)``, and the states and residuals ``(n, 2, dim)`` that the
            steps began from. After a restart the state observed next follows from those: a true
            difference.
        """
        fresh, origin = turn.least.isinf(), turn.here
        worse = turn.now.isinf() | (turn.now > self._restart * turn.least)
        if held is not None:
            worse, fresh = worse & ~held, fresh | held
        back = seldom(worse)
        if back:
            # A row that has seen nothing finite has no step that could have been too long.
            self._damping[turn.rows] *= torch.where(worse & turn.least.isfinite(), 0.5, 1.0)
            self._rule.forget(turn.rows, worse)
            origin, fresh = chosen(worse[:, None], turn.best, origin), fresh | worse
        g = origin[:, 1]
        step = self._rule.step(turn.rows, turn.here - turn.last, g, fresh, turn.most)
        following = origin[:, 0] + step
        if back or seldom(~finite_rows(following)):
            lost = ~finite_rows(step)
            self._rule.forget(turn.rows, lost if held is None else lost & ~held)
            plain = self._damping[turn.rows][:, None] * g
            following = origin[:, 0] + chosen(fresh | lost, plain, step)
            following = chosen(finite_rows(following), following, turn.best[:, 0])
        return following, origin

    def least(self, rows: Rows) -> Tensor:
        """The residuals of the best states, ``(n, 2)``: relative and absolute; inf for none."""
        return _taken(self._least, rows)

    def best(self, rows: Rows) -> Best:
        """The best states seen, with their residuals."""
        residual_rel, residual_abs = self.least(rows).unbind(1)
        return Best(_taken(self._state[:, 3], rows), residual_rel, residual_abs)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What n rows go on from.

    Attributes:
        rows: which.
        here: ``(n, 2, dim)`` the state that f was asked at, or picked by a search; its residual.
        last: ``(n, 2, dim)`` those that the last step began from.
        best: ``(n, 2, dim)`` those that are the best, the present ones included.
        now: ``(n,)`` size of the residual.
        least: ``(n,)`` of the best one before; inf where nothing finite had been seen.
        most: no row was observed more often; None where that is not known.
    """

    rows: Rows
    here: Tensor
    last: Tensor
    best: Tensor
    now: Tensor
    least: Tensor
    most: int | None


def _measured(g: Tensor, f_z: Tensor) -> Observation:
    """Both residuals ``‖g‖`` of states where f is ``f_z``, ``(n, dim)`` each."""
    residual_abs = g.norm(dim=-1)
    residual_rel = residual_abs / f_z.norm(dim=-1).clamp(min=LEAST_NORM)
    return Observation(
        residual_rel.nan_to_num(nan=torch.inf, posinf=torch.inf),
        residual_abs.nan_to_num(nan=torch.inf, posinf=torch.inf),
    )


def _taken(buffer: Tensor, rows: Rows) -> Tensor:
    """A copy of some rows: a slice alone would be a view, that the next observation changes."""
    return buffer[rows].clone() if isinstance(rows, slice) else buffer[rows]
