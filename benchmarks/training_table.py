"""The tables of the benchmark of training, as Markdown, from its JSON."""

from collections.abc import Iterable, Sequence
from statistics import fmean, quantiles
from typing import Any

from benchmarks.training_runs import CHUNK

SMOOTHED = 10
"""Steps that a point of a smoothed curve averages."""


def tables(results: dict[str, Any], *, baseline: str) -> str:
    """All of them."""
    parts = [_machine(results["machine"])]
    for regime, found in results["regimes"].items():
        competitors = found["competitors"]
        steps = len(competitors[baseline]["loss"])
        before = found["perplexity_before"]
        parts += [
            f"### {regime}: {steps} steps at lr {found['lr']:g}, perplexity {before:.2f} before",
            _speed(competitors, baseline),
            _curves(competitors),
        ]
    if results["memory"]:
        parts += ["### Memory", _memory(results["memory"])]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(machine: dict[str, Any]) -> str:
    load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores, device {machine['device']}, "
        f"{machine['threads']} thread(s), torch {machine['torch']}, float32 products at precision "
        f"{machine['float32_matmul_precision']}, load average {load}"
    )


def rates(times: Sequence[float]) -> list[float]:
    """Steps per second of each turn."""
    turns = [times[begin : begin + CHUNK] for begin in range(0, len(times), CHUNK)]
    return [len(turn) / sum(turn) for turn in turns]


def _spread(times: Sequence[float]) -> str:
    found = rates(times)
    low, middle, high = quantiles(found, n=4) if len(found) > 1 else found * 3
    return f"{middle:.3f} ({low:.3f} – {high:.3f})"


def smoothed(curve: Sequence[float]) -> list[float]:
    """Means of consecutive steps."""
    return [fmean(curve[begin : begin + SMOOTHED]) for begin in range(0, len(curve), SMOOTHED)]


def largest_gap(curve: Sequence[float], other: Sequence[float]) -> float:
    """Of two smoothed curves: the difference that is largest in size, with its sign."""
    gaps = (a - b for a, b in zip(smoothed(curve), smoothed(other), strict=True))
    return max(gaps, key=abs)


def _speed(competitors: dict[str, Any], baseline: str) -> str:
    base = competitors[baseline]
    rows = [
        (
            name,
            _spread(run["wall_s"]),
            _spread(run["cpu_s"]),
            f"{sum(base['wall_s']) / sum(run['wall_s']):.2f}",
            f"{sum(base['cpu_s']) / sum(run['cpu_s']):.2f}",
            f"{fmean(run['nfe_forward']):.1f} + {fmean(run['nfe_backward']):.1f}",
            f"{fmean(run['loss'][-SMOOTHED:]):.4f}",
            f"{largest_gap(run['loss'], base['loss']):+.4f}",
            f"{run['perplexity']:.2f}",
        )
        for name, run in competitors.items()
    ]
    head = (
        "",
        "steps/s (quartiles)",
        "steps per CPU second",
        "ratio",
        "ratio, CPU time",
        "calls, forward + backward",
        "last loss",
        "largest gap",
        "perplexity after",
    )
    return _table(head, rows)


def _curves(competitors: dict[str, Any]) -> str:
    curves = {name: smoothed(run["loss"]) for name, run in competitors.items()}
    length = len(next(iter(competitors.values()))["loss"])
    ends = [min(begin + SMOOTHED, length) for begin in range(0, length, SMOOTHED)]
    rows = [
        (str(end), *(f"{curve[i]:.4f}" for curve in curves.values())) for i, end in enumerate(ends)
    ]
    return _table(("loss, steps to", *curves), rows)


def _memory(memory: dict[str, Any]) -> str:
    budgets = list(next(iter(memory.values()))["by_budget"])
    head = (
        "MiB",
        "peak",
        "kept by autograd",
        *(f"peak at {budget} calls" for budget in budgets),
        *(f"kept at {budget}" for budget in budgets),
    )
    rows = []
    for name, found in memory.items():
        at = [found["by_budget"][budget] for budget in budgets]
        cells = [found["as_is"]["peak_mib"], found["as_is"]["saved_mib"]]
        cells += [each["peak_mib"] for each in at] + [each["saved_mib"] for each in at]
        rows.append((name, *(f"{cell:.0f}" for cell in cells)))
    return _table(head, rows)
