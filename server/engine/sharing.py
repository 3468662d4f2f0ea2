"""Runs take over what others have solved of the same tokens, and wait for what they are solving.

A run that waits is *parked*: it has its place and its memory, but no tokens to solve, so it needs
no rows and is in nobody's way.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.prefixes import Lead, Prefixes, Trace, is_hopeful
from server.engine.requests import ScoreJob
from server.engine.slab import Slab
from server.engine.solve import Solved, SolveStats
from server.engine.work import Run, Work

PATIENCE_CALLS = 32
"""Calls of f without a token of the leader accepted after which nobody waits for it any longer."""

PORTION = 512
"""Tokens taken over between two calls of f: their log-probabilities take time, too."""

_COPIED = 64
"""States copied at once out of the calls' tensors, which hold those of everybody's tokens."""


@dataclass(slots=True)
class _Parked:
    """A run that waits, or takes over.

    Attributes:
        trace: of the run.
        lead: whom it waits for; None once it takes over what is known.
        progress: tokens of the lead that were done when last looked at.
        calls: of f since there were more.
        states: to take over.
        solved: how each was solved.
        taken: how many are taken over.
    """

    trace: Trace[Tensor]
    lead: Lead[Tensor] | None
    progress: int = 0
    calls: int = 0
    states: list[Tensor] = field(default_factory=list)
    solved: list[Solved] = field(default_factory=list)
    taken: int = 0

    @property
    def portion(self) -> int:
        """Tokens to take over next."""
        return min(PORTION, len(self.states) - self.taken)


@dataclass(frozen=True, slots=True)
class Portion:
    """Tokens that a run has taken over: states and how they were solved, from ``begin`` on."""

    begin: int
    states: list[Tensor]
    solved: list[Solved]


class Sharing:
    """Solves prompts of one owner that begin alike once, and candidates of one request likewise.

    What a state was solved to is measured, so a run takes over any that is within its tolerance.
    """

    def __init__(self, batch: Batch, slab: Slab, *, max_tokens: int) -> None:
        """Keeps states of ``max_tokens`` tokens of runs that have ended; 0 shares nothing."""
        self._batch, self._slab = batch, slab
        self._is_on = max_tokens > 0
        self._prefixes = Prefixes[Tensor](max_tokens=max_tokens)
        self._parked: dict[Run, _Parked] = {}

    @property
    def kept_tokens(self) -> int:
        """Tokens whose states are kept, beside those of runs that go on."""
        return self._prefixes.kept_tokens

    @property
    def parked(self) -> int:
        """Runs that wait, or take over."""
        return len(self._parked)

    def problems(self, runs: set[Run]) -> list[str]:
        """Where what is kept, or waits, is not what the running ``runs`` allow."""
        found = self._prefixes.problems()
        if not set(self._parked) <= runs:
            found.append("a run that is over is parked")
        return found

    def start(self, run: Run) -> None:
        """Parks a new run when others know, or will know, states of its first tokens."""
        key = _key(run)
        if not self._is_on or key is None:
            return
        job = run.work.job
        trace = Trace[Tensor](
            key=key, tokens=run.sequence.inputs, tol=job.solve.tol, priority=job.priority
        )
        self._prefixes.open(trace)
        run.trace = trace
        states, _ = self._prefixes.find(trace)
        lead = self._prefixes.lead(trace, known=len(states))
        if states or lead is not None:
            self._parked[run] = _Parked(trace, lead)
            run.parked, run.sequence.inputs = True, []

    def note(self, run: Run, z_star: Tensor, solved: Solved) -> None:
        """Takes note of an accepted token of a run."""
        trace = run.trace
        if trace is None or len(trace.states) >= self._prefixes.longest:
            return
        trace.states.append(z_star)
        trace.solved.append(solved)
        if len(trace.states) % _COPIED == 0:
            _copy_last(trace.states, _COPIED)

    def ready(self, ends: float) -> list[Run]:
        """Parked runs whose turn it is to take over a portion, before a call that ends then."""
        waiting = {id(parked.trace) for parked in self._parked.values() if parked.lead is not None}
        found: list[Run] = []
        tokens = 0
        for run, parked in self._parked.items():
            if parked.lead is not None and self._is_worth_it(run, parked, waiting, ends):
                continue
            if parked.lead is not None or not parked.states:
                parked.lead = None
                parked.states, parked.solved = self._prefixes.find(parked.trace)
            tokens += parked.portion
            if not found or tokens <= PORTION:
                found.append(run)
        return found

    def take(self, run: Run) -> Portion:
        """Takes over a portion; with the last one the run goes on by itself."""
        parked, sequence = self._parked[run], run.sequence
        begin, end = parked.taken, parked.taken + parked.portion
        parked.taken = end
        part = Portion(
            begin,
            parked.states[begin:end],
            [Solved(s.nfe, s.residual, "converged") for s in parked.solved[begin:end]],
        )
        for z_star, solved in zip(part.states, part.solved, strict=True):
            if len(parked.trace.states) < self._prefixes.longest:
                parked.trace.states.append(z_star)
                parked.trace.solved.append(solved)
        run.work.stats += SolveStats(shared_tokens=end - begin)
        if end < len(parked.states):
            return part
        del self._parked[run]
        run.parked, sequence.inputs = False, parked.trace.tokens
        if end > 0:
            run.last = part.solved[-1]
            self._batch.restore(sequence, torch.stack(parked.states))
            self._slab.advance(sequence.slot, sequence.start + end, run.last)
            sequence.accepted = end
        return part

    def end(self, run: Run) -> None:
        """A run is over: what it knew is kept."""
        self._parked.pop(run, None)
        trace, run.trace = run.trace, None
        if trace is not None:
            try:
                _copy_last(trace.states, len(trace.states) % _COPIED)
            finally:
                self._prefixes.close(trace)

    def clear(self) -> None:
        """Drops what is kept of runs that are over: somebody needs the memory."""
        self._prefixes.clear()

    def forget(self, work: Work) -> None:
        """A job is over: nobody can continue its base any more."""
        if self._is_on:
            self._prefixes.forget(_candidates_key(work))

    def _is_worth_it(self, run: Run, parked: _Parked, waiting: set[int], ends: float) -> bool:
        """Whether it is still better to wait than to go on with what is known."""
        lead = parked.lead
        assert lead is not None
        leader = lead.trace
        progress = min(len(leader.states), lead.count)
        if progress > parked.progress or id(leader) in waiting:
            parked.progress, parked.calls = progress, 0
        parked.calls += 1
        return (
            leader.is_open
            and progress < lead.count
            and parked.calls <= PATIENCE_CALLS
            and is_hopeful(leader, parked.trace, lead.count)
            and run.work.spent(ends) is None
        )


def _copy_last(states: list[Tensor], count: int) -> None:
    """Gives the last states a tensor of their own."""
    if count > 0:
        states[-count:] = torch.stack(states[-count:]).unbind()


def _key(run: Run) -> Hashable | None:
    """Who may share with a run: what it continues, and whose it is. None for nobody."""
    job = run.work.job
    if run.sequence.start == 0:
        return ("fresh", job.owner)
    if isinstance(job, ScoreJob) and run.candidate is not None and len(job.candidates) > 1:
        return _candidates_key(run.work)
    return None


def _candidates_key(work: Work) -> Hashable:
    return ("candidates", work.job.job_id)
