"""What an evaluation found, for people: a table of 80 columns at most."""

from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

_WIDTH = 80
Figures = dict[str, Any]
"""Of an ``EvalReport``."""


def print_report(figures: Figures, file: TextIO) -> None:
    """Writes the figures, and the curves if there are any."""
    console = Console(file=file, highlight=False)
    console = Console(file=file, highlight=False, width=min(console.width, _WIDTH))
    with console.capture() as captured:
        console.print(_summary(figures))
        for name in ("max_nfe", "mem_len"):
            if figures[f"{name}_curve"]:
                console.print()
                console.print(curve_table(name, figures[f"{name}_curve"]))
    lines = captured.get().splitlines()
    file.write("\n".join(line.rstrip() for line in lines) + "\n")


def _summary(figures: Figures) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(figures):
        table.add_row(name, value)
    return table


def summary_rows(f: Figures) -> list[tuple[str, str]]:
    """Names and values, ``perplexity`` first."""
    rows = [
        ("perplexity", with_error(f["perplexity"], f["perplexity_error"])),
        ("nll per token", with_error(f["mean_nll"], f["mean_nll_error"], digits=4) + " nats"),
        ("bits per byte", number(f["bits_per_byte"], 3)),
        ("scored tokens", f"{f['scored_tokens']:,} of {f['text_tokens']:,}"),
        ("unknown words", f"{f['unknown']:,}"),
        ("calls of f", f"{f['nfe']:.1f} per block of {f['tgt_len']}"),
        ("evaluations", f"{f['evaluations']:.1f} per token"),
        (
            "residual",
            f"{scientific(f['mean_residual'])} mean, {scientific(f['worst_residual'])} worst",
        ),
        (
            "unconverged",
            f"{f['unconverged']:,} tokens, {share(f['unconverged_share'])}, above tol {f['tol']:g}",
        ),
    ]
    if f["spectral_radius"]:
        radius = f["spectral_radius"]
        rows.append(
            (
                "spectral radius",
                f"{radius['mean']:.2f} mean, {radius['largest']:.2f} largest of "
                f"{len(radius['samples'])} samples",
            )
        )
    rows += [
        ("time", f"{f['seconds']:.1f} s, {f['tokens_per_s']:,.0f} tokens/s"),
        ("protocol", _protocol(f)),
        ("solver", _solver(f)),
        ("numbers", f"{f['dtype']} on {f['device']}"),
        ("model", f"{f['model']} ({f['fingerprint']})"),
        ("text", f["data"]),
    ]
    return rows


def _protocol(f: Figures) -> str:
    parts = "stream" if f["protocol"] == "published" else "session"
    many = "" if f["batch_size"] == 1 else "s"
    return (
        f"{f['protocol']}: {f['batch_size']} {parts}{many}, blocks of {f['tgt_len']}, "
        f"mem_len {f['mem_len']}"
    )


def _solver(f: Figures) -> str:
    rows = "whole blocks" if f["whole_block"] else f"token by token, {f['window']} together"
    again = f", {f['retries']} retries" if f["retries"] else ""
    return f"{f['method']}, {rows}, tol {f['tol']:g}, max_nfe {f['max_nfe']}{again}"


def curve_table(name: str, points: Sequence[Figures]) -> Table:
    """A row for each point of a curve."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = (name, "perplexity", "unconverged", "residual", "calls", "s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            str(point["value"]),
            with_error(point["perplexity"], point["perplexity_error"]),
            share(point["unconverged_share"]),
            scientific(point["mean_residual"]),
            f"{point['nfe']:.1f}",
            f"{point['seconds']:.1f}",
        )
    return table


def with_error(value: float | None, error: float | None, *, digits: int = 3) -> str:
    """``57.094 ± 0.512``."""
    text = number(value, digits)
    return text if error is None else f"{text} ± {number(error, digits)}"


def number(value: float | None, digits: int) -> str:
    """With so many digits after the point; a dash for what is not finite."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}" if abs(value) < 1e7 else f"{value:.4g}"


def scientific(value: float | None) -> str:
    """``9.9e-04``."""
    return "–" if value is None else f"{value:.1e}"


def share(value: float) -> str:
    """In per cent, never rounded to none or to all."""
    per_cent = 100 * value
    if 0 < per_cent < 0.01:
        return "<0.01 %"
    if 99.99 < per_cent < 100:
        return ">99.99 %"
    return f"{per_cent:.2f} %" if 0 < per_cent < 100 else f"{per_cent:.0f} %"
