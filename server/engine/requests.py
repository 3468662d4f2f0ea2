"""What the engine is asked: plain data, no torch, no protobuf.

Durations are seconds, instants are of the monotonic clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.engine.results import Event
from server.engine.solve import Solve
from server.engine.timeline import Timeline


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

    @property
    def ids(self) -> frozenset[int]:
        """All ids that end it."""
        return self.stop_ids if self.eos_id is None else self.stop_ids | {self.eos_id}


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a session until it is released."""

    session_id: str
    serial: int


Sink = Callable[[Event], None]
"""Takes the events of a job, on the engine's thread; must not block or raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AnyJob:
    """What every job says.

    Attributes:
        job_id: its own, for logs and cancellation.
        sink: takes the events, of which the last is terminal.
        lease: on the session to continue and to commit to; None for a fresh history.
        solve: solver options.
        deadline: instant after which it fails, or None.
        answer_by: instant at which it is answered with what there is, or None.
        max_calls: most calls of f with a row of it, then likewise; None for any number.
        priority: 0 (low) to 2 (high): its share of the calls of f beside others.
        owner: whose job it is: calls and places are shared among owners first.
        request_id: of the call that it is part of, for logs.
        timeline: gets the instants of its work; None where nobody asks for them.
    """

    job_id: str
    sink: Sink
    lease: Lease | None = None
    solve: Solve = field(default_factory=Solve)
    deadline: float | None = None
    answer_by: float | None = None
    max_calls: int | None = None
    priority: int = 1
    owner: str = ""
    request_id: str = ""
    timeline: Timeline | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob(_AnyJob):
    """Score tokens, then perhaps candidates after them; ends in ``Scored`` or ``Failed``.

    Attributes:
        tokens: to score, in order; may be empty when there are candidates.
        candidates: each scored after ``tokens``; with any, nothing is committed.
        top_k: alternatives to return per token.
    """

    tokens: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...] = ()
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob(_AnyJob):
    """Solve a prompt, then draw tokens.

    Its events are ``PromptSolved``, ``Drawn`` for every token, then ``Generated`` or ``Failed``.

    Attributes:
        prompt: may be empty.
        text: makes text of drawn tokens.
        stop: when to end.
        sampling: how to draw.
        logprobs: alternatives to return per drawn token.
    """

    prompt: tuple[int, ...]
    text: TextSink
    stop: Stop
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int = 0


Job = ScoreJob | GenerateJob
