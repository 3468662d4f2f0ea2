"""What scoring and generating return: frozen dataclasses, spelled like the messages they mirror.

Log-probabilities are natural logarithms, offsets count UTF-8 bytes, durations are seconds. A result
field that is None was absent in the message. `client/_decode.py` turns protobuf into these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from client.options import BudgetPolicy


class SolverStatus(StrEnum):
    """How solving ended, the worst over the tokens of a call; `unspecified`: nothing was solved."""

    UNSPECIFIED = "unspecified"
    CONVERGED = "converged"
    MAX_NFE = "max_nfe"
    NONFINITE = "nonfinite"
    LOOSENED = "loosened"


class StoppedBy(StrEnum):
    """What cut an answer short; `unspecified`: nothing."""

    UNSPECIFIED = "unspecified"
    TIME = "time"
    CALLS = "calls"


class Kept(StrEnum):
    """Where the server holds what a call did to a session; `unspecified`: it did nothing."""

    UNSPECIFIED = "unspecified"
    IN_MEMORY = "in_memory"
    IN_STORE = "in_store"


class FinishReason(StrEnum):
    """Why generation ended."""

    UNSPECIFIED = "unspecified"
    STOP_EOS = "stop_eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    TIME = "time"
    CALLS = "calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverReport:
    """What solving took and how well it ended, for the tokens of one call."""

    nfe_total: int
    """Calls of f that had a row of this request."""
    token_evaluations: int
    """Rows of f computed."""
    solved_tokens: int
    """Tokens solved."""
    nfe_per_token: float
    """Mean calls of f on one token."""
    residual_max: float
    """Largest relative residual at acceptance."""
    residual_mean: float
    """Mean relative residual at acceptance."""
    unconverged_tokens: int
    """Tokens accepted above the tolerance."""
    converged: bool
    """Whether every token reached the tolerance."""
    status: SolverStatus
    """The worst status of a token."""
    tol: float
    """Tolerance in force."""
    max_nfe: int
    """Budget per token in force."""
    policy: BudgetPolicy | None
    """Policy in force."""
    applied_tol: float
    """Loosest tolerance applied: `tol`, or more where the server was overloaded."""
    loosened_tokens: int
    """Tokens accepted above `tol` as the server was overloaded."""
    shared_tokens: int
    """Tokens that took no call of f, as others that began alike had been solved."""
    repaired_tokens: int = 0
    """Tokens of the session that were solved again first, as its memory held no numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over scored tokens."""

    scored_tokens: int
    """Number of tokens."""
    logprob_sum: float
    """Sum of their log-probabilities."""
    mean_nll: float
    """Mean negative log-likelihood per token."""
    perplexity: float
    """exp(mean_nll)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time of a call went on the server."""

    queue_s: float
    """Waiting for admission."""
    compute_s: float
    """In the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAlternative:
    """A token that could have stood at a position."""

    token_id: int
    """The token."""
    text: str
    """Its text in the vocabulary."""
    logprob: float
    """Its log-probability at this position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """A token of the input and how likely it was."""

    token_id: int
    """The token."""
    text: str
    """Its text in the vocabulary."""
    raw: bytes
    """Its exact bytes."""
    byte_begin: int | None
    """Begin in the UTF-8 input; None when the input was token ids."""
    byte_end: int | None
    """End, exclusive, in the UTF-8 input."""
    logprob: float
    """Log-probability given all tokens before it."""
    alternatives: tuple[TokenAlternative, ...]
    """The most likely tokens here, best first."""
    nfe: int
    """Calls of f on the solution behind this log-probability."""
    residual: float
    """Relative residual of that solution."""
    converged: bool
    """Whether the residual was within the tolerance."""
    is_unknown: bool
    """Whether the text here is outside the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
    """The score of one candidate, the common prefix left out."""

    tokens: tuple[TokenScore, ...]
    """Its tokens, in order."""
    totals: Totals
    """Sums over its tokens."""
    unknown_tokens: int
    """Its tokens outside the vocabulary."""
    stopped_by: StoppedBy
    """What cut it short."""

    @property
    def complete(self) -> bool:
        """Whether every token is there, and none was accepted early."""
        return self.stopped_by is StoppedBy.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Answer of one Score call."""

    model: str
    """Model that scored."""
    session_id: str | None
    """Session of the request."""
    tokens: tuple[TokenScore, ...]
    """Tokens of the input."""
    call: Totals
    """Sums over the input of this call."""
    session: Totals | None
    """Sums over the session; None without one."""
    solver: SolverReport
    """Solver figures of the call."""
    candidates: tuple[CandidateScore, ...]
    """One for each candidate, in order."""
    position: int
    """Tokens the session holds after the call."""
    unknown_tokens: int
    """Tokens of the input outside the vocabulary."""
    timing: Timing
    """Where the time went."""
    stopped_by: StoppedBy
    """What cut the call short."""
    kept: Kept
    """Where the commit is held."""

    @property
    def complete(self) -> bool:
        """Whether everything asked for is there, and no token was accepted early."""
        return self.stopped_by is StoppedBy.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedScore:
    """One answer of a score stream: newly scored tokens and running figures."""

    tokens: tuple[TokenScore, ...]
    """Tokens scored since the last answer; offsets count from the stream's start."""
    call: Totals
    """Sums over the stream so far."""
    session: Totals
    """Sums over the session so far."""
    solver: SolverReport
    """Solver figures of the stream so far."""
    committed_position: int
    """Tokens the session holds if the stream breaks now."""
    unknown_tokens: int
    """Tokens of the stream outside the vocabulary."""
    final: bool
    """Whether this is the last answer."""
    model: str
    """Model that scores."""
    session_id: str | None
    """Session given; None with a private one."""
    timing: Timing
    """Time of the stream so far."""
    committed_bytes: int
    """Bytes of the stream's text scored so far."""
    stopped_by: StoppedBy
    """What cut this answer short; what it leaves out comes first in the next one."""
    kept: Kept
    """Where the commit is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStarted:
    """The prompt has been read."""

    model: str
    """Model that generates."""
    session_id: str | None
    """Session of the request."""
    seed: int
    """Seed in force."""
    prompt_tokens: int
    """Tokens of the prompt."""
    unknown_tokens: int
    """Tokens of the prompt outside the vocabulary."""
    prompt: Totals
    """Sums over the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedToken:
    """A generated token."""

    token_id: int
    """The token."""
    text: str
    """Text that became certain with it; may be empty."""
    logprob: float
    """The model's log-probability, before temperature, penalty and filters."""
    alternatives: tuple[TokenAlternative, ...]
    """The model's most likely tokens here, best first."""
    nfe: int
    """Calls of f on the solution behind this distribution."""
    residual: float
    """Relative residual of that solution."""
    converged: bool
    """Whether the residual was within the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFinished:
    """Generation is over."""

    reason: FinishReason
    """Why."""
    text: str
    """Text held back until now."""
    stop_string: str | None
    """The stop string found."""
    stop_id: int | None
    """The stop id or <eos> drawn."""
    generated_tokens: int
    """Tokens drawn, an ending one included."""
    call: Totals
    """Sums over the generated tokens."""
    session: Totals | None
    """Sums over the session; None without one."""
    solver: SolverReport
    """Solver figures, prompt included."""
    position: int
    """Tokens the session holds after the call."""
    timing: Timing
    """Where the time went."""
    time_to_first_token_s: float
    """From the start of the call to the first token."""
    kept: Kept
    """Where the commit is held."""


GenerationEvent: TypeAlias = GenerationStarted | GeneratedToken | GenerationFinished
"""One step of generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A whole generation."""

    text: str
    """The generated text."""
    tokens: tuple[GeneratedToken, ...]
    """The generated tokens."""
    started: GenerationStarted
    """What was read."""
    finished: GenerationFinished
    """How it ended."""
