"""What a caller may ask of a solver, and what becomes of a row."""

import enum
import math
from dataclasses import dataclass
from typing import Literal

from deq_model.errors import ConfigError

Method = Literal["broyden", "anderson", "picard"]
StopMode = Literal["rel", "abs"]


class SolverStatus(enum.IntEnum):
    """How the solve of one row ended."""

    CONVERGED = 0
    """The residual came under the tolerance at the state that is returned."""
    MAX_NFE = 1
    """The budget of calls was spent; the best state seen is returned."""
    NONFINITE = 2
    """No call of f gave a finite value; the starting state is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """How to solve ``z = f(z)``.

    Attributes:
        method: broyden (arXiv 1909.01377), anderson, or picard (plain iteration).
        tol: tolerance on the residual, ``‖f(z) − z‖ / ‖f(z)‖`` or ``‖f(z) − z‖``.
        max_nfe: budget of calls of f.
        stop_mode: which residual the tolerance is for, rel(ative) or abs(olute). Mind that a map
            ``z + (something bounded)``, such as an untrained pre-LN model, meets any relative
            tolerance far enough from the origin, where it has no fixed point.
        depth: past steps a row remembers; broyden forgets them all when it is full.
        restart: a row whose residual grows to this many times its least one goes back to its best
            state and forgets its steps; inf for never.
        line_search: halve a step of broyden that does not lessen the residual, at most twice,
            before the next one is made; each try is a call of f.
    """

    method: Method = "broyden"
    tol: float = 1e-3
    max_nfe: int = 35
    stop_mode: StopMode = "rel"
    depth: int = 12
    restart: float = 100.0
    line_search: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("broyden", "anderson", "picard"):
            raise ConfigError(f"method must be broyden, anderson or picard, got {self.method!r}")
        if not (math.isfinite(self.tol) and self.tol > 0):
            raise ConfigError(f"tol must be a finite number above 0, got {self.tol}")
        if self.max_nfe < 1:
            raise ConfigError(f"max_nfe must be at least 1, got {self.max_nfe}")
        if self.stop_mode not in ("rel", "abs"):
            raise ConfigError(f"stop_mode must be rel or abs, got {self.stop_mode!r}")
        if self.depth < 1:
            raise ConfigError(f"depth must be at least 1, got {self.depth}")
        if not self.restart > 1:
            raise ConfigError(f"restart must be above 1, got {self.restart}")
        if self.line_search and self.method != "broyden":
            raise ConfigError(
                f"line_search must be false unless method is broyden, got method {self.method!r}"
            )
