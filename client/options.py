"""What the client takes: inputs and options, frozen dataclasses spelled like the contract.

An option left at None is not sent, and the server's default holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias


class BudgetPolicy(StrEnum):
    """What the server does with a token that has not converged after `max_nfe` calls of f."""

    BEST_EFFORT = "best_effort"
    ERROR = "error"


class Priority(StrEnum):
    """Whose turn it is when there is more work than fits into one call of f."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Asks a score stream to score the text it holds back."""


FLUSH: Final = Flush()
"""The one flush there is; put it among the pieces given to `score_stream`."""

Input: TypeAlias = str | Sequence[int]
"""Text, or token ids."""

StreamPiece: TypeAlias = str | Sequence[int] | Flush
"""What may be sent on a score stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """How exactly, and how long, each token is solved; None leaves the choice to the server."""

    tol: float | None = None
    """Relative residual ||f(z) - z|| / ||f(z)|| at which a token is accepted."""
    max_nfe: int | None = None
    """Most calls of f on one token."""
    policy: BudgetPolicy | None = None
    """What to do at the budget."""
    keep_tol: bool | None = None
    """Keep to `tol` however busy the server is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a whole call may take; when it is spent, the answer is what there is by then, marked.

    Of a score stream it bounds each response.
    """

    max_time_s: float | None = None
    """Seconds from the call's arrival at the server, waiting included."""
    max_calls: int | None = None
    """Most calls of f in which the call has a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is drawn; None leaves the choice to the server."""

    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float | None = None
    """Keep the most likely tokens whose probabilities sum up to this."""
    min_p: float | None = None
    """Keep tokens at least this likely relative to the most likely one."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens that have appeared less likely."""
    seed: int | None = None
    """Seed of the draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOptions:
    """When generation ends; None leaves the choice to the server."""

    stop_strings: tuple[str, ...] = ()
    """Strings that end the text."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the text."""
    max_tokens: int | None = None
    """Most tokens to generate."""
    min_tokens: int | None = None
    """Tokens before which nothing ends the text."""
    ignore_eos: bool | None = None
    """Go on after <eos>."""
