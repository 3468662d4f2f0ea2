"""Curves in axes: one panel or several side by side.

Letters: a curve has n points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.plots.style import (
    GRID,
    INK,
    MARK,
    MUTED,
    Stroke,
    number_text,
    series_colour,
    styled,
    tidy_log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = 1e-100
_STROKES = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.5))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through points.

    Attributes:
        label: its name in the legend; empty for none.
        x: n abscissae, ascending.
        y: n values; where one is missing (None, not finite) the line has a gap.
        y_error: n standard errors, drawn as bars.
        colour: hex digits, or None for the next of the series' colours.
        stroke: solid, dashed or dotted.
        markers: a dot at each point, for curves of few.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    y_error: Sequence[float] | None = None
    colour: str | None = None
    stroke: Stroke = "solid"
    markers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line, such as a bound.

    Attributes:
        y: where.
        label: very short text beside its right end, outside the axes.
    """

    y: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What one pair of axes shows.

    Attributes:
        curves: at least one.
        title: above the axes; empty for none.
        x_label, y_label: with the unit.
        x_scale, y_scale: log drops points that are not above zero.
        levels: bounds; those far outside the curves are left out.
        shaded: stretch of the x axis with a grey ground.
        x_range: least and greatest x to make room for; None for those of the curves.
        marks: abscissae with a mark at the foot of the axes.
        legend: whether to name the curves, where there are several.
    """

    curves: Sequence[Curve]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    levels: Sequence[Level] = ()
    shaded: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    marks: Sequence[float] = ()
    legend: bool = True


def curve_figure(panel: Panel, *, width: float = 5.6, height: float = 3.6) -> "Figure":
    """One panel; width and height in inches.

    Raises:
        PlotError: matplotlib is not installed.
    """
    return panels_figure([panel], columns=1, width=width, height=height)


def panels_figure(
    panels: Sequence[Panel], *, columns: int = 2, width: float = 4.6, height: float = 3.2
) -> "Figure":
    """Panels in rows of ``columns``; width and height of one of them in inches.

    Raises:
        PlotError: matplotlib is not installed.
    """
    with styled():
        from matplotlib.figure import Figure

        columns = min(columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            _draw(figure.add_subplot(rows, columns, place), panel)
    return figure


def _draw(axes: "Axes", panel: Panel) -> None:
    drawn = [_draw_curve(axes, curve, panel, place) for place, curve in enumerate(panel.curves)]
    if panel.x_scale == "log" and any(drawn):
        tidy_log_axis(axes, "x")
    if panel.y_scale == "log" and any(drawn):
        tidy_log_axis(axes, "y")
    _label(axes, panel)
    _make_room(axes, panel)
    for level in panel.levels:
        _draw_level(axes, level)
    if panel.shaded is not None:
        axes.axvspan(*panel.shaded, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    if panel.marks:
        foot = axes.get_xaxis_transform()
        height = [0.025] * len(panel.marks)
        axes.plot(panel.marks, height, "^", color=MARK, transform=foot, clip_on=False, zorder=5)
    if panel.legend and sum(bool(curve.label) for curve in panel.curves) > 1:
        axes.legend(loc="best")


def _draw_curve(axes: "Axes", curve: Curve, panel: Panel, place: int) -> bool:
    """Returns whether there was anything to draw."""
    x, y, kept = _points(curve, panel)
    if not any(map(math.isfinite, y)):
        return False
    colour = curve.colour or series_colour(place)
    marker = "o" if curve.markers or sum(map(math.isfinite, y)) <= 2 else ""
    stroke = _STROKES[curve.stroke]
    axes.plot(x, y, color=colour, linestyle=stroke, marker=marker, label=curve.label)
    if curve.y_error is not None:
        errors = [curve.y_error[i] for i in kept]
        axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=colour, capsize=2.5, linewidth=1)
    return True


def _points(curve: Curve, panel: Panel) -> tuple[list[float], list[float], list[int]]:
    """What can be drawn on the panel's axes, nan where there is a gap, and its places."""
    x: list[float] = []
    y: list[float] = []
    kept: list[int] = []
    for i, (left, value) in enumerate(zip(curve.x, curve.y, strict=True)):
        if panel.x_scale == "log" and left <= 0:
            continue
        sound = value is not None and math.isfinite(value)
        if sound and panel.y_scale == "log" and value is not None and value <= 0:
            sound = False
        x.append(float(left))
        y.append(float(value) if sound and value is not None else math.nan)
        kept.append(i)
    return x, y, kept


def _label(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if panel.title:
        axes.set_title(panel.title, pad=8)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    plain = FuncFormatter(lambda value, _: number_text(value))
    if panel.x_scale == "linear":
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=_whole(panel))
        )
        axes.xaxis.set_major_formatter(plain)
    if panel.y_scale == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(plain)


def _make_room(axes: "Axes", panel: Panel) -> None:
    """The x axis as wide as is asked for; a y axis around the single value that there is."""
    if panel.x_range is not None and panel.x_range[0] < panel.x_range[1]:
        low, high = panel.x_range
        margin = 0.03 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    if panel.y_scale == "linear":
        values = {y for curve in panel.curves for y in _points(curve, panel)[1] if math.isfinite(y)}
        value = values.pop() if len(values) == 1 else 0.0
        if abs(value) > _LEAST:
            axes.set_ylim(value - abs(value) / 2, value + abs(value) / 2)


def _whole(panel: Panel) -> bool:
    return all(float(x).is_integer() for curve in panel.curves for x in curve.x)


def _draw_level(axes: "Axes", level: Level) -> None:
    """A bound far from the curves would squeeze them: it is drawn only if it is near."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        near = low > 0 and level.y > 0 and low / 10 <= level.y <= high * 10
    else:
        near = low - (high - low) / 2 <= level.y <= high + (high - low) / 2
    if not near:
        return
    axes.axhline(level.y, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    right = axes.get_yaxis_transform()
    axes.text(1.01, level.y, level.label, transform=right, ha="left", va="center", color=INK)
