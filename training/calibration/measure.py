"""What a map is worth on held-out text: calls of f, and what they change in the answers.

Letters: B streams, T tokens of each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deq_model.function import EquilibriumWeights
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from deq_model.warm_start import WarmStart
from training.calibration.fit import start_error
from training.calibration.samples import samples_of
from training.calibration.window import solve_streams

EXACT_TOL = 1e-5
"""Of the states that log-probabilities are compared with: float32 gets there in most models."""

OFF = 0.05
"""A log-probability that differs by more counts as off."""

Start = Literal["zeros", "linear", "network"]
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Text solved with a window.

    Attributes:
        window: tokens of a stream solved together; 1 is generation.
        nfe: calls of f per token.
        change: mean of the log-probabilities' differences from the exact ones, without sign.
        median: their median.
        off: share of them above ``OFF``: other fixed points, and what follows on them.
        perplexity: relative change of the perplexity.
        unconverged: tokens that did not come under the tolerance.
    """

    window: int
    nfe: float
    change: float
    median: float
    off: float
    perplexity: float
    unconverged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A way to start, measured.

    Attributes:
        start: which.
        error: mean ``‖z_init − z*‖ / ‖z*‖``, each predecessor known.
        cost: what making the state costs, in calls of f, by their products.
        served: with every window.
    """

    start: Start
    error: float
    cost: float
    served: tuple[Served, ...]

    @property
    def nfe(self) -> float:
        """Calls of f per token with what the map costs, mean over the windows."""
        return self.cost + sum(served.nfe for served in self.served) / len(self.served)

    def saving(self, zeros: "Measured") -> float:
        """Share of the calls of f saved, what the map costs taken off."""
        return 1 - self.nfe / zeros.nfe


class Judge:
    """Held-out text with its exact log-probabilities."""

    def __init__(
        self,
        model: DEQLanguageModel,
        weights: EquilibriumWeights,
        tokens: Tensor,
        options: SolverOptions,
        *,
        windows: tuple[int, ...],
        progress: Told | None = None,
    ) -> None:
        """Solves the text as exactly as its number format allows.

        Args:
            model: to measure.
            weights: its folded ones.
            tokens: ``(B, T)`` int64, each stream begun with ``<eos>``.
            options: that calls are counted with.
            windows: to measure with.
            progress: called with tokens done and tokens in all.
        """
        self._model, self._weights, self._tokens = model, weights, tokens
        self._options, self._windows = options, windows
        exact = SolverOptions(
            tol=min(EXACT_TOL, options.tol), max_nfe=4 * options.max_nfe, depth=options.depth
        )
        solved = solve_streams(model, weights, tokens, exact, progress=progress)
        self._logprob = self._logprobs(solved.z_star)
        _, self._samples = samples_of(model, tokens, solved.z_star, tuning_every=1)

    def measure(
        self,
        start: Start,
        warm_start: WarmStart | None,
        progress: Callable[[str], Told] | None = None,
    ) -> Measured:
        """One way to start; ``progress`` begins a stage for each window."""
        served = []
        for window in self._windows:
            told = None if progress is None else progress(f"{start}, window {window}")
            served.append(self._served(warm_start, window, told))
        return Measured(
            start=start,
            error=start_error(warm_start, self._samples),
            cost=0.0 if warm_start is None else warm_start.n_parameters / products(self._weights),
            served=tuple(served),
        )

    def _served(self, warm_start: WarmStart | None, window: int, progress: Told | None) -> Served:
        solved = solve_streams(
            self._model,
            self._weights,
            self._tokens,
            self._options,
            window=window,
            warm_start=warm_start,
            progress=progress,
        )
        difference = self._logprobs(solved.z_star) - self._logprob
        size = difference.abs()
        return Served(
            window=window,
            nfe=solved.mean_nfe,
            change=float(size.mean()),
            median=float(size.median()),
            off=float((size > OFF).double().mean()),
            perplexity=math.expm1(-float(difference.mean())),
            unconverged=solved.unconverged,
        )

    @torch.no_grad()
    def _logprobs(self, z_star: Tensor) -> Tensor:
        """``(B, T − 1)`` float64, stream by stream: few distributions at a time."""
        targets = self._tokens[:, 1:].to(z_star.device)
        parts = [
            -self._model.nll(z[None, :-1], target[None])
            for z, target in zip(z_star, targets, strict=True)
        ]
        return torch.cat(parts).double()


def products(weights: EquilibriumWeights) -> int:
    """Numbers of f's matrices that a row is multiplied with, attention to others left out."""
    return sum(matrix.numel() for matrix in (weights.qkv, weights.o, weights.ff1, weights.ff2))
