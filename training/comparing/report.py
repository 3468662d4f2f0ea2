"""A comparison as JSON-ready figures and as a Markdown table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from training.comparing.measure import ModelFigures, paired_difference
from training.comparing.traces import QUANTILES, Reach
from training.evaluating.curves import CurvePoint
from training.evaluating.report import plain
from training.evaluating.table import number, scientific, share, with_error
from training.options.comparison import CompareRun


def comparison_figures(run: CompareRun, models: Sequence[ModelFigures]) -> dict[str, Any]:
    """JSON-ready; null where a number is not finite."""
    differences = paired_difference(models)
    values = {
        "data": str(run.data),
        "text_tokens_used": models[0].token_ids.numel(),
        "batch_size": run.batch_size,
        "tgt_len": [model.exact.tgt_len for model in models],
        "tol": run.tol,
        "max_nfe": run.max_nfe,
        "budget_tol": run.budget_tol,
        "trace_blocks": run.trace_blocks,
        "models": [
            _model(model) | {"nll_above_first": difference and dataclasses.asdict(difference)}
            for model, difference in zip(models, differences, strict=True)
        ],
    }
    found: dict[str, Any] = plain(values)
    return found


def _model(model: ModelFigures) -> dict[str, Any]:
    exact = model.exact
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "parameters": model.parameters,
        "perplexity": exact.perplexity,
        "perplexity_error": exact.perplexity_error,
        "mean_nll": exact.mean_nll,
        "mean_nll_error": exact.mean.error,
        "bits_per_byte": model.bits_per_byte,
        "scored_tokens": exact.scored_tokens,
        "unconverged": exact.unconverged,
        "nfe": exact.nfe,
        "spectral_radius": list(exact.radius),
        "calls_whole_block": [dataclasses.asdict(reach) for reach in model.whole],
        "calls_by_token": [dataclasses.asdict(reach) for reach in model.by_token],
        "residual_whole_block": dataclasses.asdict(model.whole_band),
        "residual_by_token": dataclasses.asdict(model.token_band),
        "residual_quantiles": QUANTILES,
        "budgets": [dataclasses.asdict(point) for point in model.budgets],
    }


def comparison_table(run: CompareRun, models: Sequence[ModelFigures]) -> str:
    """Markdown: a column for each model, and what was measured on what."""
    lines = [
        "| | " + " | ".join(model.name for model in models) + " |",
        "|---|" + "---|" * len(models),
        *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in _rows(run, models)),
        "",
        _footnote(run, models),
        "",
    ]
    return "\n".join(lines).replace(" %", "\N{NO-BREAK SPACE}%")


def _rows(run: CompareRun, models: Sequence[ModelFigures]) -> list[tuple[str, list[str]]]:
    rows = [
        ("parameters", [f"{m.parameters:,}" for m in models]),
        (
            "perplexity per token",
            [with_error(m.exact.perplexity, m.exact.perplexity_error, digits=2) for m in models],
        ),
        ("bits per byte", [number(m.bits_per_byte, 3) for m in models]),
    ]
    if len(models) > 1:
        rows.append(_difference_row(models))
    rows.append(("spectral radius, median (10 % to 90 %)", [_radius(m) for m in models]))
    for i, reach in enumerate(models[0].whole):
        name = f"calls to {reach.tol:g}, whole block"
        rows.append((name, [_reach(m.whole[i]) for m in models]))
    for i, reach in enumerate(models[0].by_token):
        name = f"calls to {reach.tol:g}, token by token"
        rows.append((name, [_reach(m.by_token[i]) for m in models]))
    for i, point in enumerate(models[0].budgets):
        name = f"after {point.value} calls: perplexity; tokens above {run.budget_tol:g}"
        rows.append((name, [_budget(m.budgets[i]) for m in models]))
    return rows


def _budget(point: CurvePoint) -> str:
    return f"{number(point.perplexity, 2)}; {share(point.unconverged_share)}"


def _difference_row(models: Sequence[ModelFigures]) -> tuple[str, list[str]]:
    cells = []
    for place, found in enumerate(paired_difference(models)):
        if place == 0:
            cells.append("–")
        elif found is None:
            cells.append("other vocabulary")
        else:
            cells.append(f"{found.mean:+.4f} ± {found.error:.4f} nats")
    return f"loss against {models[0].name}, same tokens", cells


def _radius(model: ModelFigures) -> str:
    radius = torch.tensor(model.exact.radius, dtype=torch.float64)
    points = torch.tensor(QUANTILES, dtype=torch.float64)
    low, middle, high = torch.quantile(radius, points).tolist()
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _reach(reach: Reach) -> str:
    if reach.share == 0:
        return "never"
    if reach.share == 1:
        return f"{reach.calls:.1f}"
    return f"{reach.calls:.1f}; {share(1 - reach.share)} never"


def _footnote(run: CompareRun, models: Sequence[ModelFigures]) -> str:
    first = models[0]
    unconverged = ", ".join(f"{m.exact.unconverged:,} ({m.name})" for m in models)
    worst = max(m.exact.worst_residual for m in models)
    return (
        f"The first {first.token_ids.numel():,} tokens of `{run.data.name}`, of which "
        f"{first.exact.scored_tokens:,} are scored, in {run.batch_size} streams, blocks of "
        f"{first.exact.tgt_len}. Perplexity: float64, Broyden on whole blocks to {run.tol:g}; "
        f"tokens above that: {unconverged}, worst residual {scientific(worst)}. Errors are "
        "standard errors by batch means. Calls and "
        f"residuals: float64, from zeros, the mean over {run.trace_blocks * run.batch_size} blocks "
        "of one stream; a block that never comes to a tolerance counts with all its "
        f"{run.max_nfe} calls, {2 * run.max_nfe} token by token. Spectral radius: the power method "
        f"at {len(first.exact.radius)} fixed points. After so many calls: float32, whole blocks, "
        "without another try."
    )
