"""What an evaluation found, as JSON-ready figures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.evaluating.curves import CurvePoint
from training.evaluating.solving import EvalOptions
from training.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """All that ``deqlm eval`` tells.

    Attributes:
        result: of the evaluation itself.
        options: that it ran with.
        size: ``(B, n)`` bytes of each target.
        about: what was evaluated, JSON-ready: model, fingerprint, data, protocol, dtype, device.
        text_tokens: of the whole text.
        unknown: of these, how many stand for words outside the vocabulary.
        max_nfe_curve: perplexity against the budget; empty where none was asked for.
        mem_len_curve: perplexity against the memory, likewise.
    """

    result: Evaluation
    options: EvalOptions
    size: Tensor
    about: Mapping[str, Any]
    text_tokens: int
    unknown: int
    max_nfe_curve: tuple[CurvePoint, ...] = ()
    mem_len_curve: tuple[CurvePoint, ...] = ()

    @property
    def scored_bytes(self) -> int:
        """Bytes of UTF-8 of the scored tokens."""
        return int(self.size[:, : self.result.nll.shape[1]].sum())

    @property
    def bits_per_byte(self) -> float:
        """Over the bytes of the scored tokens; nan where they have none."""
        if self.scored_bytes == 0:
            return math.nan
        return float(self.result.nll.sum()) / math.log(2) / self.scored_bytes

    def figures(self) -> dict[str, Any]:
        """JSON-ready, ``perplexity`` first; null where a number is not finite."""
        result, options, mean = self.result, self.options, self.result.mean
        values = {
            "perplexity": result.perplexity,
            "perplexity_error": result.perplexity_error,
            "mean_nll": mean.mean,
            "mean_nll_error": mean.error,
            "error_batches": mean.batches,
            "bits_per_byte": self.bits_per_byte,
            "scored_tokens": result.scored_tokens,
            "scored_bytes": self.scored_bytes,
            "text_tokens": self.text_tokens,
            "unknown": self.unknown,
            "nfe": result.nfe,
            "evaluations": result.evaluations,
            "unconverged": result.unconverged,
            "unconverged_share": result.unconverged_share,
            "mean_residual": result.mean_residual,
            "worst_residual": result.worst_residual,
            "residual_by_call": result.residual_by_call,
            "spectral_radius": radius_figures(result.radius),
            "seconds": result.seconds,
            "tokens_per_s": result.tokens_per_s,
            "max_nfe_curve": [dataclasses.asdict(point) for point in self.max_nfe_curve],
            "mem_len_curve": [dataclasses.asdict(point) for point in self.mem_len_curve],
            **self.about,
            "blocks": result.blocks,
            "mem_len": options.mem_len,
            "tgt_len": options.tgt_len,
            "batch_size": options.batch_size,
            "window": options.window or options.tgt_len,
            "whole_block": options.whole_block,
            "retries": options.retries,
            "method": options.solver.method,
            "tol": options.solver.tol,
            "max_nfe": options.solver.max_nfe,
            "depth": options.solver.depth,
        }
        found: dict[str, Any] = plain(values)
        return found


def radius_figures(radius: Sequence[float]) -> dict[str, Any] | None:
    """Mean, median and largest of estimates of the spectral radius; None without any."""
    if not radius:
        return None
    values = torch.tensor(radius, dtype=torch.float64)
    return {
        "mean": float(values.mean()),
        "median": float(values.quantile(0.5)),
        "largest": float(values.max()),
        "samples": list(radius),
    }


def plain(value: Any) -> Any:
    """JSON-ready: tuples as lists, null for what is not finite, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
