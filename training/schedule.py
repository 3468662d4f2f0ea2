"""The learning rate of every step."""

import math
from typing import Any

from training.options.optimiser import OptimiserOptions


class Schedule:
    """The learning rate: a linear rise from near zero, then what the options say.

    Only the plateau's has a state: what the validation losses have made of the rate so far.
    """

    def __init__(self, options: OptimiserOptions) -> None:
        self._options = options
        self._best = math.inf
        self._waited = 0
        self._factor = 1.0

    def rate(self, step: int) -> float:
        """Of step 0, 1, …"""
        options = self._options
        if step < options.warmup_steps:
            return options.lr * (step + 1) / options.warmup_steps
        match options.schedule:
            case "cosine":
                return self._cosine(step)
            case "inverse_root":
                return options.lr * math.sqrt(max(1, options.warmup_steps) / (step + 1))
            case "plateau":
                return max(options.min_lr, options.lr * self._factor)
            case "constant":
                return options.lr

    def _cosine(self, step: int) -> float:
        options = self._options
        span = max(1, options.max_steps - options.warmup_steps)
        done = min(1.0, (step - options.warmup_steps) / span)
        share = 0.5 * (1 + math.cos(math.pi * done))
        return options.min_lr + (options.lr - options.min_lr) * share

    def observe(self, nll: float) -> None:
        """Takes a validation loss, which the plateau's rate depends on; nan is no lower one."""
        if nll < self._best:
            self._best, self._waited = nll, 0
            return
        self._waited += 1
        if self._waited >= self._options.plateau_patience:
            self._waited = 0
            self._factor *= self._options.plateau_factor

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {"best": self._best, "waited": self._waited, "factor": self._factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._best, self._waited = state["best"], state["waited"]
        self._factor = state["factor"]
