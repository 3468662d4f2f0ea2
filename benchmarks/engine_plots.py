"""The pictures of docs/speed.md, from the JSON of the engine's benchmark.

``python -m benchmarks.engine_plots`` draws the time of a call of f by its rows, with the lines that
the memory's bandwidth and the arithmetic set it (a roofline), and how many calls of f tokens take.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.plots.output import save_figure
from training.plots.style import INK, MUTED, SERIES, styled, tidy_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE = "baseline"
PLAIN = "plain products, float32"
MOST_CALLS = 20
"""Tokens that take more are counted at the last bar."""


def roofline(found: dict[str, Any]) -> "Figure":
    """Milliseconds of f without attention, by rows and number format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    bytes_per_s = found["bandwidth"]["bytes_per_s"]
    for colour, (form, part) in zip(SERIES, found["parts"].items(), strict=False):
        rows, times = _times(part["seconds"])
        axes.plot(rows, times, "o-", color=colour, label=form)
        read_ms = part["nbytes"] / bytes_per_s * 1e3
        compute = part["operations_per_row"] / part["operations_per_s"] * 1e3
        least = [max(read_ms, compute * count) for count in rows]
        axes.plot(rows, least, "--", color=colour, linewidth=1.0)
    axes.plot(*_times(found["plain"]["seconds"]), "s-", color=MUTED, label=PLAIN)
    axes.plot([], [], "--", color=INK, linewidth=1.0, label="reading the weights, or arithmetic")
    axes.set(xlabel="rows of the call", ylabel="milliseconds")
    axes.set_xscale("log")
    axes.set_xticks(rows, [str(count) for count in rows])
    axes.minorticks_off()
    tidy_log_axis(axes, "y")
    axes.set_title("One call of f at 98M parameters, without attention")
    axes.legend()
    return figure


def _times(seconds: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Rows, and the least milliseconds: others may be at work on the machine."""
    return [int(rows) for rows in seconds], [one["min"] * 1e3 for one in seconds.values()]


def calls_per_token(results: dict[str, Any], setting: str) -> "Figure":
    """Histograms of the calls of f in a generated token's solve, baseline and engine.

    Dashed are their means; dotted, of the engine, how many calls go by from one token to the next:
    solves overlap.
    """
    from matplotlib.figure import Figure

    panels = _panels(results["sections"])
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, competitors) in zip(grid.flat, panels.items(), strict=False):
        _histogram(axes, competitors[BASELINE], SERIES[1], BASELINE, -0.2)
        _histogram(axes, competitors[setting], SERIES[0], f"engine, {setting}", 0.2)
        axes.set_title(title)
        axes.set_xlim(0.4, MOST_CALLS + 0.6)
        axes.set_xticks([1, 5, 10, 15, 20], ["1", "5", "10", "15", "≥ 20"])
        axes.grid(axis="x", visible=False)
    grid[0, 0].set_ylabel("share of tokens")
    grid[-1, 0].set_xlabel("calls of f in a token's solve")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _panels(sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By title, the competitors."""
    panels = {}
    if "generate-1" in sections:
        panels["random, 98M"] = sections["generate-1"]["competitors"]
    for name, both in sections.get("trained", {}).items():
        if name != "run":
            panels[name] = both["generation"]
    return panels


def _histogram(axes: "Axes", found: dict[str, Any], colour: str, name: str, shift: float) -> None:
    nfe = [min(calls, MOST_CALLS) for calls in found["nfe"]]
    counts = Counter(nfe)
    at = sorted(counts)
    shares = [counts[calls] / len(nfe) for calls in at]
    axes.bar([calls + shift for calls in at], shares, width=0.4, color=colour, label=name)
    mean = found["nfe_mean"]
    axes.axvline(mean, color=colour, linewidth=1.0, linestyle="--")
    if found["calls_per_token"] < mean:
        axes.axvline(found["calls_per_token"], color=colour, linewidth=1.2, linestyle=":")
    axes.annotate(
        f"{mean:.1f}",
        (mean, 1.0 if shift > 0 else 0.9),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        color=colour,
        va="top",
    )


def main(arguments: list[str] | None = None) -> None:
    """Writes both pictures."""
    flags = argparse.ArgumentParser(description="Draws the pictures of docs/speed.md.")
    add = flags.add_argument
    add("--results", type=Path, default=Path("benchmarks/results/engine-cpu.json"))
    add("--setting", help="of the engine, in the histograms; default: the first one measured")
    add("--out", type=Path, default=Path("docs/images"), help="folder")
    options = flags.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    with styled():
        if "call" in results["sections"]:
            figure = roofline(results["sections"]["call"])
            save_figure(figure, options.out / "engine-call.png")
        if _panels(results["sections"]):
            setting = options.setting or next(iter(results["settings"]))
            figure = calls_per_token(results, setting)
            save_figure(figure, options.out / "engine-calls-per-token.png")


if __name__ == "__main__":
    main()
