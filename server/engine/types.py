"""What the engine is asked and what it answers: plain data, no torch, no protobuf.

Log-probabilities are natural logarithms, durations are seconds, instants are of the monotonic
clock unless they are said to be wall time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from server.engine.errors import EngineError

Policy = Literal["best_effort", "error"]
Status = Literal["converged", "loosened", "max_nfe", "nonfinite"]
Stopped = Literal["time", "calls"]
"""What cut a job short: its time or its calls of f were spent."""
FinishReason = Literal["eos", "stop_id", "stop_string", "length", "time", "calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve:
    """How exactly each token is solved.

    Attributes:
        tol: relative residual at which a token is accepted.
        max_nfe: most calls of f on one token.
        policy: what happens to a token that spent its budget: accept its best state and mark it,
            or fail the request.
        keep_tol: never loosened, however much work is waiting.
    """

    tol: float = 1e-3
    max_nfe: int = 100
    policy: Policy = "best_effort"
    keep_tol: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn; filters apply in the order of the fields.

    Attributes:
        repetition_penalty: log-probabilities of tokens already in the context of this call are
            multiplied by it; 1 changes nothing.
        temperature: 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: the smallest set of tokens with at least this probability.
        min_p: only tokens at least this likely relative to the most likely one.
        seed: of this request's own generator.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that a drawn token releases.

    Attributes:
        text: may be empty while a character or a possible stop string is incomplete.
        stop_string: the stop string that ended the text, or None.
    """

    text: str
    stop_string: str | None = None


class TextSink(Protocol):
    """Turns drawn tokens into text and watches for stop strings; runs on the engine's thread."""

    def feed(self, token_id: int) -> Piece:
        """Takes a drawn token."""

    def finish(self) -> str:
        """The text still held back when the generation ends for another reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """When a generation ends.

    Attributes:
        max_tokens: most tokens drawn.
        min_tokens: eos and stop ids cannot be drawn before that many; stop strings do not end it.
        stop_ids: ids that end it.
        eos_id: ends it; None to go on after <eos>.
    """

    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    eos_id: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a session until it is released."""

    session_id: str
    serial: int


Sink = Callable[["Event"], None]
"""Takes the events of a job, on the engine's thread; must not block or raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """Score tokens, then perhaps candidates after them.

    Attributes:
        job_id: request id, for logs and cancellation.
        tokens: to score, in order; may be empty when there are candidates.
        candidates: each scored after ``tokens``; with any, nothing is committed.
        lease: on the session to continue and to commit to; None for a fresh history.
        top_k: alternatives to return per token.
        solve: solver options.
        deadline: instant after which it fails, or None.
        answer_by: instant at which it is answered with what there is, or None.
        max_calls: most calls of f with a row of it, then likewise; None for any number.
        priority: 0 (low) to 2 (high): its share of the calls of f beside others.
        owner: whose job it is: calls and places are shared among owners first.
        sink: takes the events; the last is ``Scored`` or ``Failed``.
    """

    job_id: str
    tokens: tuple[int, ...]
    sink: Sink
    candidates: tuple[tuple[int, ...], ...] = ()
    lease: Lease | None = None
    top_k: int = 0
    solve: Solve = field(default_factory=Solve)
    deadline: float | None = None
    answer_by: float | None = None
    max_calls: int | None = None
    priority: int = 1
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """Solve a prompt, then draw tokens.

    Attributes:
        job_id: request id.
        prompt: may be empty.
        text: makes text of drawn tokens.
        stop: when to end.
        sampling: how to draw.
        logprobs: alternatives to return per drawn token.
        lease: on the session to continue and to commit to; None for a fresh history.
        solve: solver options.
        deadline: instant after which it fails, or None.
        answer_by: instant at which it ends with what there is, or None.
        max_calls: most calls of f with a row of it, then likewise; None for any number.
        priority: 0 (low) to 2 (high): its share of the calls of f beside others.
        owner: whose job it is: calls and places are shared among owners first.
        sink: takes ``PromptSolved``, then ``Drawn`` for every token, then ``Generated`` or
            ``Failed``.
    """

    job_id: str
    prompt: tuple[int, ...]
    text: TextSink
    stop: Stop
    sink: Sink
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int = 0
    lease: Lease | None = None
    solve: Solve = field(default_factory=Solve)
    deadline: float | None = None
    answer_by: float | None = None
    max_calls: int | None = None
    priority: int = 1
    owner: str = ""


Job = ScoreJob | GenerateJob


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over scored tokens."""

    scored_tokens: int = 0
    logprob_sum: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.scored_tokens + other.scored_tokens, self.logprob_sum + other.logprob_sum
        )

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood; 0 over no tokens."""
        return -self.logprob_sum / self.scored_tokens if self.scored_tokens else 0.0

    @property
    def perplexity(self) -> float:
        """exp(mean_nll), inf where that overflows; 1 over no tokens."""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf


@dataclass(frozen=True, slots=True)
class SolveStats:
    """What solving some tokens took.

    Attributes:
        nfe_total: calls of f with at least one row of the request.
        token_evaluations: rows of f computed for it.
        solved_tokens: tokens accepted, the priming <eos> included.
        residual_sum: of the residuals at acceptance that are finite.
        residual_max: largest residual at acceptance.
        max_nfe_tokens: tokens accepted at their budget, or when the job's was spent.
        nonfinite_tokens: tokens for which f was never finite.
        loosened_tokens: tokens accepted above their tolerance as much work was waiting.
        applied_tol: loosest tolerance applied; 0 before the first token.
        shared_tokens: tokens taken over as others had solved them; not among the solved ones.
    """

    nfe_total: int = 0
    token_evaluations: int = 0
    solved_tokens: int = 0
    residual_sum: float = 0.0
    residual_max: float = 0.0
    max_nfe_tokens: int = 0
    nonfinite_tokens: int = 0
    loosened_tokens: int = 0
    applied_tol: float = 0.0
    shared_tokens: int = 0

    def __add__(self, other: "SolveStats") -> "SolveStats":
        return SolveStats(
            self.nfe_total + other.nfe_total,
            self.token_evaluations + other.token_evaluations,
            self.solved_tokens + other.solved_tokens,
            self.residual_sum + other.residual_sum,
            max(self.residual_max, other.residual_max),
            self.max_nfe_tokens + other.max_nfe_tokens,
            self.nonfinite_tokens + other.nonfinite_tokens,
            self.loosened_tokens + other.loosened_tokens,
            max(self.applied_tol, other.applied_tol),
            self.shared_tokens + other.shared_tokens,
        )

    @property
    def unconverged_tokens(self) -> int:
        """Tokens accepted above the tolerance."""
        return self.max_nfe_tokens + self.nonfinite_tokens + self.loosened_tokens

    @property
    def status(self) -> Status:
        """The worst of the tokens' statuses."""
        if self.nonfinite_tokens:
            return "nonfinite"
        if self.max_nfe_tokens:
            return "max_nfe"
        return "loosened" if self.loosened_tokens else "converged"


@dataclass(frozen=True, slots=True)
class Solved:
    """How one token was solved: calls of f on it, residual at acceptance, and status."""

    nfe: int
    residual: float
    status: Status


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability given all before it.

    Attributes:
        token_id: the token.
        logprob: its log-probability.
        alternatives: (id, log-probability) of the most likely tokens there, best first.
        solved: of the state that predicted it: the token before.
    """

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    solved: Solved


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds a job waited and was worked on."""

    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as its owner may see it; ``*_time`` are wall time in seconds since the epoch."""

    session_id: str
    owner: str
    position: int
    totals: Totals
    create_time: float
    last_used_time: float
    expire_time: float
    ttl_s: float
    memory_bytes: int
    busy: bool
    solve: Solve
    last_token: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """End of a ``ScoreJob``.

    Attributes:
        tokens: of the input; the first ones where the job was cut short.
        candidates: tokens of each candidate, likewise.
        session: the session after the commit; None without one.
        position: tokens held by the session, or scored without one.
        stats: solver figures, candidates included.
        times: waiting and working.
        stopped: what cut the job short; None when it has all it asked for.
        cut: candidates that were cut short.
    """

    tokens: tuple[TokenLogprob, ...]
    candidates: tuple[tuple[TokenLogprob, ...], ...]
    session: SessionView | None
    position: int
    stats: SolveStats
    times: Times
    stopped: Stopped | None = None
    cut: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PromptSolved:
    """The prompt of a ``GenerateJob`` is solved, or as much of it as it may; its totals."""

    totals: Totals


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token and the text that it released; ``logprob`` is the model's own."""

    token: TokenLogprob
    text: str


@dataclass(frozen=True, slots=True)
class Generated:
    """End of a ``GenerateJob``.

    Attributes:
        reason: why it ended.
        text: text that was held back until now.
        stop_string: that ended it, or None.
        stop_id: that ended it (also <eos>), or None.
        totals: over the drawn tokens.
        session: the session after the commit; None without one.
        position: tokens held.
        stats: solver figures, prompt included.
        times: waiting and working.
        time_to_first_token_s: from submission; None when none was drawn.
    """

    reason: FinishReason
    text: str
    stop_string: str | None
    stop_id: int | None
    totals: Totals
    session: SessionView | None
    position: int
    stats: SolveStats
    times: Times
    time_to_first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    """End of a job that failed; its session is as it was."""

    error: EngineError


Event = Scored | PromptSolved | Drawn | Generated | Failed
TERMINAL = (Scored, Generated, Failed)
"""Every accepted job ends in exactly one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Sizes of the engine.

    Attributes:
        max_batch_tokens: most rows in one call of f.
        max_running: sequences (requests, or candidates of one) solved together; jobs begun. A
            quarter is kept for owners that have none.
        max_queue: jobs that may wait.
        max_queue_tokens: tokens that may wait.
        max_sessions: sessions held.
        window: most rows of one sequence in a call.
        overload_tol: tolerance to which tokens are loosened while more jobs wait than
            ``overload_queue``; 0 for never.
        overload_queue: jobs that may wait before tokens are loosened.
        prefix_cache: tokens whose states are kept for prompts that begin alike; 0 shares nothing.
    """

    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 256
    max_queue_tokens: int = 1_000_000
    max_sessions: int = 256
    window: int = 64
    overload_tol: float = 0.0
    overload_queue: int = 32
    prefix_cache: int = 0


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Gauges of the engine at one moment.

    ``loosening`` says whether tokens are solved to ``overload_tol`` now, ``prefix_tokens`` how many
    tokens of ended prompts have their states kept.
    """

    running_jobs: int
    waiting_jobs: int
    waiting_tokens: int
    sessions: int
    slots_used: int
    slots_total: int
    memory_bytes: int
    session_memory_bytes: int
    loosening: bool = False
    prefix_tokens: int = 0
