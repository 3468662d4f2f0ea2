"""A job while it is worked on: its phases, its results, its clock."""

import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from server.engine.errors import EngineError
from server.engine.prefixes import Trace
from server.engine.requests import GenerateJob, Job, ScoreJob
from server.engine.results import FinishReason, Stopped, Times, TokenLogprob, Totals
from server.engine.scheduler import Sequence
from server.engine.solve import Solved, SolveStats


@dataclass(slots=True, eq=False)
class Run:
    """One sequence of a job.

    Attributes:
        work: the job.
        sequence: being solved.
        targets: ``targets[i]`` is the token to score after ``sequence.inputs[i]``; None for none.
        tokens: scored so far.
        candidate: which candidate it is; None for the job's own tokens.
        last: how its last accepted token was solved.
        early: whether a token was accepted before its own budget was spent, as the job's was.
        trace: what others may take over of it; None for nothing.
        parked: whether it waits for what others solve.
        ahead: random numbers of its next guess; None for those of its next draw.
        asked: how many inputs it had when its last guess was made.
        again: first tokens that the session holds already: they are solved, but not scored.
    """

    work: "Work"
    sequence: Sequence
    targets: list[int | None]
    tokens: list[TokenLogprob] = field(default_factory=list)
    candidate: int | None = None
    last: Solved | None = None
    early: bool = False
    trace: Trace[Any] | None = None
    parked: bool = False
    ahead: random.Random | None = None
    asked: int = 0
    again: int = 0

    @property
    def first(self) -> int:
        """Where its own tokens begin among the sequence's inputs."""
        return self.again + (1 if self.sequence.start == 0 else 0)

    @property
    def held(self) -> int:
        """Accepted tokens of its own, the priming <eos> not counted."""
        return max(0, self.sequence.accepted - self.first)

    @property
    def accepted_tokens(self) -> list[int]:
        """Ids of those."""
        return self.sequence.inputs[self.first : self.sequence.accepted]

    def is_cut(self, size: int) -> bool:
        """Whether its answer is less than that for ``size`` tokens solved in peace."""
        return self.early or len(self.tokens) < size


@dataclass(slots=True, eq=False)
class Work:
    """A job and what is known of it.

    Attributes:
        job: as submitted.
        submitted: instant.
        started: instant of the first row, or None.
        base_position: tokens that the session held before.
        base_totals: over them.
        base_slot: memory that candidates continue, held by this job; None before it is known.
        again: tokens of the session that have to be solved again, as their states are lost.
        main: run of the job's own tokens; None before the start and when there are none.
        runs: runs that are not finished.
        waiting_candidates: candidates that have no run yet.
        candidates: results by candidate.
        stats: solver figures so far.
        generator: draws of a generation.
        drawn: tokens drawn so far.
        first_token: instant of the first drawn token.
        closing: what is spent once the present call of f is made; None while there is more.
        cut: candidates that were cut short.
        finished: whether its terminal event is out.
        error: it ended with; None while it runs, and if it was done.
        foretold_s: seconds from ``submitted`` to its end, as they were foretold then; None where
            nothing was known.
    """

    job: Job
    submitted: float
    started: float | None = None
    base_position: int = 0
    base_totals: Totals = field(default_factory=Totals)
    base_slot: int | None = None
    again: tuple[int, ...] = ()
    main: Run | None = None
    runs: list[Run] = field(default_factory=list)
    waiting_candidates: deque[int] = field(default_factory=deque)
    candidates: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    stats: SolveStats = field(default_factory=SolveStats)
    generator: random.Random = field(default_factory=random.Random)
    drawn: list[TokenLogprob] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    prompt_announced: bool = False
    ending: "Ending | None" = None
    first_token: float | None = None
    closing: Stopped | None = None
    cut: set[int] = field(default_factory=set)
    finished: bool = False
    error: EngineError | None = None
    foretold_s: float | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The job's own tokens."""
        return self.job.tokens if isinstance(self.job, ScoreJob) else self.job.prompt

    @property
    def size(self) -> int:
        """Tokens that the job may take; those to be solved again once that is known."""
        own = len(self.again) + len(self.tokens)
        if isinstance(self.job, GenerateJob):
            return own + self.job.stop.max_tokens
        return own + sum(len(candidate) for candidate in self.job.candidates)

    def needs_last_state(self, candidate: int | None) -> bool:
        """Whether the last token of a run must be solved: it is followed, or kept by a session."""
        job = self.job
        if isinstance(job, GenerateJob):
            return True
        return candidate is None and (job.lease is not None or bool(job.candidates))

    def spent(self, now: float) -> Stopped | None:
        """What of the job's budget is spent at an instant; None while there is more."""
        job = self.job
        if job.max_calls is not None and self.stats.nfe_total >= job.max_calls:
            return "calls"
        if job.answer_by is not None and now >= job.answer_by:
            return "time"
        return None

    @property
    def is_solving(self) -> bool:
        """Whether the next calls of f bring more of its answer, or owe it the last drawn token."""
        owed = bool(self.drawn) and self.job.lease is not None
        return any(
            run.parked or run.sequence.rows or (owed and not run.sequence.done) for run in self.runs
        )

    def start(self, now: float) -> None:
        """It is worked on from now on."""
        self.started = now
        if self.job.timeline is not None:
            self.job.timeline.start(now)

    def let_go(self) -> None:
        """Forgets the runs of a job that is over: they know it, and the garbage collector alone
        would find both, with all that was scored.
        """
        self.main = None
        self.runs.clear()

    def count(self, solved: Solved, tol: float) -> None:
        """Adds a token, accepted under a tolerance of ``tol``, to the figures."""
        finite = solved.residual != float("inf")
        token = SolveStats(
            token_evaluations=solved.nfe,
            solved_tokens=1,
            residual_sum=solved.residual if finite else 0.0,
            residual_max=solved.residual,
            max_nfe_tokens=int(solved.status == "max_nfe"),
            nonfinite_tokens=int(solved.status == "nonfinite"),
            loosened_tokens=int(solved.status == "loosened"),
            applied_tol=tol,
        )
        self.stats += token
        if self.job.timeline is not None:
            self.job.timeline.accept(time.monotonic(), token, calls=self.stats.nfe_total)

    def end(self) -> None:
        """Its terminal event comes next."""
        self.finished = True
        if self.job.timeline is not None:
            self.job.timeline.end(time.monotonic(), self.stats)

    def times(self, now: float) -> Times:
        """Seconds of waiting and of work until now."""
        started = now if self.started is None else self.started
        return Times(queue_s=started - self.submitted, compute_s=now - started)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a generation ends; see ``Generated``."""

    reason: FinishReason
    stop_string: str | None = None
    stop_id: int | None = None


def totals_of(tokens: list[TokenLogprob]) -> Totals:
    """Sums over scored tokens."""
    return Totals(len(tokens), sum(token.logprob for token in tokens))
