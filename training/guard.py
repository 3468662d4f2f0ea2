"""Steps that would do harm: how they are told from sound ones, and what is done about them."""

import math
from dataclasses import dataclass
from typing import Any

from training.options.run import BadStep, GuardOptions

WINDOW = 100
"""Sound steps that the running mean of the loss remembers, roughly."""
FEWEST = 10
"""Sound steps before a loss can be called a spike: until then it has no usual height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What a step is judged by, the same on every rank.

    Attributes:
        loss: mean nll, in nats per token.
        grad_norm: of the whole gradient, before clipping.
        residual: mean residual of the forward solve.
        solved: whether states were solved for, not applied a fixed number of times (pretraining).
        backward_failed: whether a row of the backward solve was never finite.
    """

    loss: float
    grad_norm: float
    residual: float
    solved: bool
    backward_failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do about a step.

    Attributes:
        reason: what is wrong with it; None if it is sound.
        action: what is done about it; a loss or gradient that is not finite never moves the
            parameters, so that ``warn`` becomes ``skip``.
    """

    reason: str | None = None
    action: BadStep = "skip"

    @property
    def applies(self) -> bool:
        """Whether the step moves the parameters."""
        return self.reason is None or self.action == "warn"


class Guard:
    """Judges one step after the other."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._mean, self._count = 0.0, 0
        self._solved = False
        self.skipped = 0
        """Steps in a row, up to the last, that did not move the parameters."""

    def judge(self, signs: Signs) -> Verdict:
        """Judges the next step and remembers it."""
        if signs.solved and not self._solved:  # pretraining is over: the loss has a new height
            self._count, self._solved = 0, True
        verdict = self._verdict(signs)
        if verdict.applies:
            self._remember(signs.loss)
        self.skipped = 0 if verdict.applies else self.skipped + 1
        return verdict

    def _remember(self, loss: float) -> None:
        """Moves the running mean; by a spike that was let through no more than by its bound."""
        if self._options.spike and self._count >= FEWEST:
            loss = min(loss, self._mean + self._options.spike)
        self._count = min(self._count + 1, WINDOW)
        self._mean += (loss - self._mean) / self._count

    def _verdict(self, signs: Signs) -> Verdict:
        action = self._options.action
        if not (math.isfinite(signs.loss) and math.isfinite(signs.grad_norm)):
            name = "gradient" if math.isfinite(signs.loss) else "loss"
            return Verdict(
                reason=f"the {name} is not finite", action="skip" if action == "warn" else action
            )
        reason = self._solver_trouble(signs) or self._spike(signs.loss)
        return Verdict(reason=reason, action=action)

    def _solver_trouble(self, signs: Signs) -> str | None:
        bound = self._options.residual
        if not signs.solved:
            return None
        if bound and not signs.residual <= bound:
            return f"the forward solver diverged: mean residual {signs.residual:.3g} > {bound:g}"
        if signs.backward_failed:
            return "the backward solver diverged: not finite"
        return None

    def _spike(self, loss: float) -> str | None:
        bound = self._options.spike
        if not bound or self._count < FEWEST or loss <= self._mean + bound:
            return None
        return f"the loss is a spike: {loss:.3f} > {self._mean:.3f} + {bound:g}"

    @property
    def exhausted(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.skipped >= self._options.max_skipped

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {
            "mean": self._mean,
            "count": self._count,
            "solved": self._solved,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._mean, self._count = state["mean"], state["count"]
        self._solved, self.skipped = state["solved"], state["skipped"]
