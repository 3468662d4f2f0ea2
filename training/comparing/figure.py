"""One picture of a comparison: the models side by side in every panel."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from training.comparing.measure import ModelFigures
from training.comparing.traces import Band, Reach
from training.options.comparison import CompareRun
from training.plots.curves import Curve, Panel, panels_figure
from training.plots.style import series_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_figure(run: CompareRun, models: Sequence[ModelFigures]) -> "Figure":
    """Six panels in two columns."""
    return panels_figure(
        [
            _residuals("Residual of a whole block", models, lambda m: m.whole_band),
            _residuals("Residual of a token, token by token", models, lambda m: m.token_band),
            _calls(models),
            _radius(models),
            _perplexity(models),
            _unconverged(run, models),
        ],
        columns=2,
        width=4.8,
        height=3.3,
    )


def _residuals(
    title: str, models: Sequence[ModelFigures], of: Callable[[ModelFigures], Band]
) -> Panel:
    curves = []
    for place, model in enumerate(models):
        found, colour = of(model), series_colour(place)
        calls = range(1, len(found.middle) + 1)
        curves.append(Curve(label=model.name, x=calls, y=found.middle, colour=colour))
        curves += [
            Curve(label="", x=calls, y=edge, colour=colour, stroke="dotted")
            for edge in (found.low, found.high)
        ]
    return Panel(
        title=title,
        curves=curves,
        x_label="calls of f",
        y_label="relative residual: median, 10 %, 90 %",
        y_scale="log",
    )


def _calls(models: Sequence[ModelFigures]) -> Panel:
    curves = []
    for place, model in enumerate(models):
        colour = series_colour(place)
        curves.append(_reach_curve(f"{model.name}, whole block", model.whole, colour))
        curves.append(_reach_curve(f"{model.name}, by token", model.by_token, colour, dashed=True))
    return Panel(
        title="Calls that a tolerance takes",
        curves=curves,
        x_label="tolerance",
        y_label="calls of f a block",
        x_scale="log",
    )


def _reach_curve(label: str, found: Sequence[Reach], colour: str, *, dashed: bool = False) -> Curve:
    ascending = sorted(found, key=lambda reach: reach.tol)
    return Curve(
        label=label,
        x=[reach.tol for reach in ascending],
        y=[reach.calls for reach in ascending],
        colour=colour,
        stroke="dashed" if dashed else "solid",
        markers=True,
    )


def _radius(models: Sequence[ModelFigures]) -> Panel:
    curves = []
    for model in models:
        ascending = sorted(model.exact.radius)
        shares = [100 * (i + 1) / len(ascending) for i in range(len(ascending))]
        curves.append(Curve(label=model.name, x=ascending, y=shares))
    return Panel(
        title="Spectral radius at the fixed points",
        curves=curves,
        x_label="spectral radius of the Jacobian of f",
        y_label="blocks at or below it, %",
    )


def _perplexity(models: Sequence[ModelFigures]) -> Panel:
    return Panel(
        title="Perplexity after so many calls",
        curves=[
            Curve(
                label=model.name,
                x=[point.value for point in model.budgets],
                y=[point.perplexity for point in model.budgets],
                markers=True,
            )
            for model in models
        ],
        x_label="calls of f a block, whole blocks",
        y_label="perplexity per token",
        x_scale="log",
        y_scale="log",
    )


def _unconverged(run: CompareRun, models: Sequence[ModelFigures]) -> Panel:
    return Panel(
        title=f"Tokens above {run.budget_tol:g} after so many calls",
        curves=[
            Curve(
                label=model.name,
                x=[point.value for point in model.budgets],
                y=[100 * point.unconverged_share for point in model.budgets],
                markers=True,
            )
            for model in models
        ],
        x_label="calls of f a block, whole blocks",
        y_label="tokens, %",
        x_scale="log",
    )
