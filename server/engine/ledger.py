"""What is known of the solves, and which tokens are done after a call of f. No torch."""

from dataclasses import dataclass

from server.engine.layout import Layout
from server.engine.precision import is_exact_enough, wants_exact
from server.engine.scheduler import GATE, Scheduler, Sequence
from server.engine.solve import Solve, Solved

Options = dict[Sequence, Solve]
"""How to solve each sequence."""


@dataclass(slots=True)
class _Row:
    """What is known of the solve in a row.

    Attributes:
        nfe: calls of f on it.
        ahead: those of them made while it was a guess, with a history that was not final: they are
            not of its budget.
        early: whether its last call came before its turn: a token before it was far.
        residual: relative, in the last of them.
        error: relative, of f in the last of them, by a feed-forward that is a difference from its
            anchor; 0 where it was exact.
        anchored: whether it has an anchor of its own.
        settled: whether its history is what it was in its last call, were it the first of its
            window.
    """

    nfe: int = 0
    ahead: int = 0
    early: bool = False
    residual: float = float("inf")
    error: float = 0.0
    anchored: bool = False
    settled: bool = True

    @property
    def charged(self) -> int:
        """Calls of f of its budget."""
        return self.nfe - self.ahead


@dataclass(frozen=True, slots=True)
class Verdict:
    """A token that is done.

    Attributes:
        sequence: it belongs to.
        index: in the sequence's inputs.
        row: of the solver.
        offset: of its row in the call.
        residual: that the call measured.
        converged: whether it is accepted for that; if not, its budget is spent.
        nfe: calls of f on it.
    """

    sequence: Sequence
    index: int
    row: int
    offset: int
    residual: float
    converged: bool
    nfe: int

    def solved(self, best_residual: float) -> Solved:
        """How it was solved, with the least residual that was seen of it; inf for none."""
        if self.converged:
            return Solved(self.nfe, self.residual, "converged")
        finite = best_residual != float("inf")
        return Solved(self.nfe, best_residual, "max_nfe" if finite else "nonfinite")


class Ledger:
    """The solves in all rows."""

    def __init__(self, max_rows: int) -> None:
        self._rows = [_Row() for _ in range(max_rows)]
        self._first: list[float] = []

    def begin(self, row: int) -> None:
        """A new solve in a row."""
        self._rows[row] = _Row()

    def begin_anew(self, row: int) -> None:
        """A solve begins again where it stands; what is spent of its budget stays spent."""
        known = self._rows[row]
        self._rows[row] = _Row(nfe=known.nfe, ahead=known.ahead, early=known.early)

    def residual(self, row: int) -> float:
        """Relative residual in the last call on a row; inf before the first."""
        return self._rows[row].residual

    def relearning(self, layout: Layout) -> list[int]:
        """Rows whose turn has come, after calls that came before it.

        What their solves learned meanwhile is about histories that were moving.
        """
        found = []
        for sequence in layout.sequences:
            for i, row_id in enumerate(sequence.active):
                row, early = self._rows[row_id], i >= sequence.ready
                if row.early and not early:
                    found.append(row_id)
                row.early = early
        return found

    def most_calls(self, layout: Layout) -> int:
        """Calls of f on the row that has had most."""
        return max(self._rows[row].nfe for row in layout.row_ids)

    def exact(self, layout: Layout, options: Options) -> list[bool]:
        """Which rows of the call are to be computed exactly, and become their own anchors.

        All that should be, once one of them is the first of its window and can be accepted: an
        exact row reads the weights' second bytes, which others then have for little more.
        """
        wanted, needed = [], False
        for sequence in layout.sequences:
            solve = options[sequence]
            behind_far = False
            for i, row in enumerate(self._rows[row_id] for row_id in sequence.active):
                # What a token is accepted with when its budget is spent must be of the exact f.
                last = row.charged >= solve.max_nfe - 1
                # Behind a token that is far a row will move yet: its anchor would be left behind.
                wants = not behind_far and wants_exact(
                    error=row.error, residual=row.residual, tol=solve.tol
                )
                wanted.append(last or wants)
                needed = needed or last or (wants and i == 0)
                behind_far = behind_far or row.residual > GATE
        return wanted if needed else [False] * len(wanted)

    def anchored(self, layout: Layout, exact: list[bool]) -> list[bool]:
        """Which rows of the call are differences from their own anchors, or become those."""
        for row_id, now in zip(layout.row_ids, exact, strict=True):
            row = self._rows[row_id]
            row.anchored = row.anchored or now
        return [self._rows[row_id].anchored for row_id in layout.row_ids]

    def settled(self, layout: Layout, new_anchor: list[bool]) -> list[bool]:
        """Which rows' f is the one of their last call: the first of a window, mostly.

        Not with a new anchor: residuals of differences from another one are of another f.
        """
        settled = [False] * len(layout.row_ids)
        for offset in layout.offsets:
            row = self._rows[layout.row_ids[offset]]
            settled[offset] = row.settled and (row.nfe == 0 or not new_anchor[offset])
        return settled

    def note(self, layout: Layout, residual: list[float], error: list[float]) -> None:
        """Counts a call, with each row's residual and the error of its f; see ``_Row``."""
        at = 0
        self._first.clear()
        for sequence in layout.sequences:
            known = sequence.left - sequence.guessed
            for i, row_id in enumerate(sequence.active):
                row = self._rows[row_id]
                row.nfe += 1
                row.ahead += i >= known
                row.residual, row.error = residual[at], error[at]
                if row.nfe == 1:
                    self._first.append(residual[at])
                # An anchor that is not finite would spoil all that follows.
                row.anchored = row.anchored and residual[at] != float("inf")
                row.settled = True
                at += 1

    @property
    def first_residuals(self) -> list[float]:
        """Those of the rows that had their first call in the last one noted."""
        return list(self._first)

    def judge(self, layout: Layout, options: Options, residual: list[float]) -> list[Verdict]:
        """The prefixes of the windows that are done after a call.

        Once a token is accepted at another state than the one this call measured, what the call
        says of later tokens is about a different history: they wait for the next call, unless
        their own budget is spent.
        """
        verdicts: list[Verdict] = []
        for sequence, offset in zip(layout.sequences, layout.offsets, strict=True):
            solve, measured = options[sequence], True
            # Whether a guess is right is known once the token before it is accepted.
            for i, row in enumerate(sequence.active[: sequence.left - sequence.guessed]):
                at = offset + i
                state = self._rows[row]
                exact = is_exact_enough(error=state.error, tol=solve.tol)
                converged = measured and exact and residual[at] <= solve.tol
                if not converged and state.charged < solve.max_nfe:
                    break
                index = sequence.accepted + i
                verdicts.append(
                    Verdict(sequence, index, row, at, residual[at], converged, state.nfe)
                )
                measured = measured and converged
        return verdicts

    def leave(
        self,
        scheduler: Scheduler,
        layout: Layout,
        verdicts: list[Verdict],
        residual: list[float],
    ) -> None:
        """Tells the scheduler who is done, and who is near."""
        done = dict.fromkeys(layout.sequences, 0)
        for verdict in verdicts:
            done[verdict.sequence] += 1
        for (sequence, count), offset in zip(done.items(), layout.offsets, strict=True):
            if not sequence.granted:
                continue  # its job has ended meanwhile
            behind = residual[offset + count : offset + sequence.granted]
            near = next((i for i, size in enumerate(behind) if size > GATE), len(behind))
            scheduler.accept(sequence, count, near=near)
        # What the next row saw last was f behind another state than the one accepted, if that was
        # not the one of this call, or if the row rested.
        called = set(layout.row_ids)
        for verdict in verdicts:
            rows = verdict.sequence.rows
            if rows and not (verdict.converged and rows[0] in called):
                self._rows[rows[0]].settled = False
