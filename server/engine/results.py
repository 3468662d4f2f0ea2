"""What the engine answers: plain data, no torch, no protobuf.

Log-probabilities are natural logarithms, durations are seconds.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from server.engine.errors import EngineError
from server.engine.solve import Solve, Solved, SolveStats

if TYPE_CHECKING:
    from server.engine.snapshots import Snapshot

Stopped = Literal["time", "calls"]
"""What cut a job short: its time or its calls of f were spent."""
FinishReason = Literal["eos", "stop_id", "stop_string", "length", "time", "calls"]


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
    """A session as its owner may see it; ``*_time`` are wall time in seconds since the epoch.

    After a commit that is to be stored ``snapshot`` is what to store.
    """

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
    repairs: int = 0
    snapshot: "Snapshot | None" = None


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
    """End of a job that failed; its session is as it was.

    Attributes:
        error: why.
        solved: tokens that had been solved for it.
    """

    error: EngineError
    solved: int = 0


Event = Scored | PromptSolved | Drawn | Generated | Failed
TERMINAL = (Scored, Generated, Failed)
"""Every accepted job ends in exactly one of these."""
