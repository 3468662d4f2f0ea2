"""The picture of an evaluation: its curves, and how the residual falls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.evaluating.curves import CurvePoint
from training.evaluating.report import EvalReport
from training.plots.curves import Curve, Level, Panel, panels_figure
from training.plots.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_figures() -> None:
    """Raises PlotError where figures cannot be drawn at all."""
    with styled():
        pass


def evaluation_figure(report: EvalReport) -> "Figure":
    """Residual by call, and a panel or two for each curve that was asked for."""
    panels = [_residuals(report)]
    if report.max_nfe_curve:
        panels += [
            _perplexity("Perplexity against the budget", "max_nfe", report.max_nfe_curve, log=True),
            _unconverged(report.max_nfe_curve),
        ]
    if report.mem_len_curve:
        panels.append(
            _perplexity("Perplexity against the memory", "mem_len", report.mem_len_curve, log=False)
        )
    return panels_figure(panels, columns=2)


def _residuals(report: EvalReport) -> Panel:
    curve = report.result.residual_by_call
    return Panel(
        title="Residual by call of f",
        curves=[Curve(label="", x=range(1, len(curve) + 1), y=curve)],
        levels=[Level(y=report.options.solver.tol, label="tol")],
        x_label="calls of f",
        y_label="mean relative residual",
        y_scale="log",
    )


def _perplexity(title: str, name: str, points: Sequence[CurvePoint], *, log: bool) -> Panel:
    x_label = "calls of f a block (max_nfe)" if name == "max_nfe" else "mem_len, tokens"
    return Panel(
        title=title,
        curves=[
            Curve(
                label="",
                x=[point.value for point in points],
                y=[point.perplexity for point in points],
                y_error=[point.perplexity_error for point in points],
                markers=True,
            )
        ],
        x_label=x_label,
        y_label="perplexity",
        x_scale="log" if log else "linear",
        y_scale="log" if log else "linear",
    )


def _unconverged(points: Sequence[CurvePoint]) -> Panel:
    return Panel(
        title="Tokens above the tolerance",
        curves=[
            Curve(
                label="",
                x=[point.value for point in points],
                y=[100 * point.unconverged_share for point in points],
                markers=True,
            )
        ],
        x_label="calls of f a block (max_nfe)",
        y_label="tokens, %",
        x_scale="log",
    )
