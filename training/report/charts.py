"""The charts of a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.plots.curves import Curve, Level, Panel
from training.plots.style import INK, Stroke, series_colour, shade
from training.report.plans import OPTIMISATION, QUALITY, SOLVING, STABILITY, Line, Plan
from training.report.reading import Record, RunLog, finite

MOST_POINTS = 1000
"""Points of a curve; a longer one is drawn as the means of neighbours."""
_MOMENTS = 5
_STROKES: tuple[Stroke, ...] = ("solid", "dashed", "dotted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of a legend."""

    label: str
    colour: str
    stroke: Stroke = "solid"
    markers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: heading above it.
        note: what is shown, and how to read it.
        panel: what to draw; None where the logs have nothing for it.
        legend: names of its curves; empty where there is one only.
    """

    title: str
    note: str
    panel: Panel | None = None
    legend: tuple[Entry, ...] = ()


def charts(runs: Sequence[RunLog]) -> list[Chart]:
    """All charts, those that the logs have nothing for among them."""
    return [
        *(_over_steps(plan, runs) for plan in (*QUALITY, *SOLVING)),
        _residual_by_call(runs),
        *(_over_steps(plan, runs) for plan in (*STABILITY, *OPTIMISATION)),
    ]


def _over_steps(plan: Plan, runs: Sequence[RunLog]) -> Chart:
    curves, lines = [], []
    for line in plan.lines:
        found = [(place, *line.read(run)) for place, run in enumerate(runs)]
        drawn = [(place, x, y) for place, x, y in found if _drawable(y, plan)]
        lines += [line] if drawn else []
        curves += [
            _curve(line, x, y, runs=runs, place=place, number=plan.lines.index(line))
            for place, x, y in drawn
        ]
    if not curves:
        return Chart(title=plan.title, note=plan.note)
    panel = Panel(
        curves=curves,
        x_label="step",
        y_label=plan.y_label,
        y_scale=plan.y_scale,
        levels=_levels(plan, runs),
        shaded=_pretraining(runs),
        x_range=_steps(runs),
        marks=_bad_steps(runs) if plan in QUALITY else (),
        legend=False,
    )
    return Chart(title=plan.title, note=plan.note, panel=panel, legend=_legend(plan, lines, runs))


def _drawable(y: Sequence[float], plan: Plan) -> bool:
    """Zeros alone say that there was nothing to measure, such as a solve while pretraining."""
    return any(y) and (plan.y_scale != "log" or any(value > 0 for value in y))


def _curve(
    line: Line,
    x: list[float],
    y: list[float],
    *,
    runs: Sequence[RunLog],
    place: int,
    number: int,
) -> Curve:
    """One run: lines differ by colour. Several: runs do, and lines by stroke."""
    x, y = thinned(x, y)
    one = len(runs) == 1
    return Curve(
        label=line.label if one else runs[place].name,
        x=x,
        y=y,
        colour=series_colour(number if one else place),
        stroke="solid" if one else _STROKES[number % len(_STROKES)],
        markers=line.markers,
    )


def _legend(plan: Plan, lines: Sequence[Line], runs: Sequence[RunLog]) -> tuple[Entry, ...]:
    if len(runs) == 1 and len(lines) == 1:
        return ()
    entries = []
    for line in lines:
        number = plan.lines.index(line)
        colour = series_colour(number) if len(runs) == 1 else INK
        stroke = "solid" if len(runs) == 1 else _STROKES[number % len(_STROKES)]
        entries.append(Entry(label=line.label, colour=colour, stroke=stroke, markers=line.markers))
    if len(runs) == 1:
        return tuple(entries)
    return (*run_entries(runs), *(entries if len(entries) > 1 else ()))


def run_entries(runs: Sequence[RunLog]) -> tuple[Entry, ...]:
    """The colours of several runs."""
    return tuple(Entry(label=run.name, colour=series_colour(i)) for i, run in enumerate(runs))


def thinned(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points: means of equal numbers of neighbours."""
    width = math.ceil(len(x) / MOST_POINTS)
    if width <= 1:
        return x, y
    return _means(x, width), _means(y, width)


def _means(values: list[float], width: int) -> list[float]:
    parts = (values[i : i + width] for i in range(0, len(values), width))
    return [sum(part) / len(part) for part in parts]


def _levels(plan: Plan, runs: Sequence[RunLog]) -> list[Level]:
    """The bounds that all runs share."""
    levels = [Level(y=value, label=label) for value, label in plan.constant_bounds]
    for option, label in plan.bounds:
        values = {run.number(option) for run in runs}
        value = values.pop()
        if value and not values:
            levels.append(Level(y=value, label=label))
    if len({level.y for level in levels}) < len(levels):
        return [Level(y=levels[0].y, label=levels[0].label.partition(" ")[0])]
    return levels


def _pretraining(runs: Sequence[RunLog]) -> tuple[float, float] | None:
    """The steps without solving, if they are the same in all runs."""
    steps = {run.number("equilibrium.pretrain_steps") for run in runs}
    end = min(steps.pop() or 0.0, max(run.last_step for run in runs))
    return (0.0, end) if end and not steps else None


def _steps(runs: Sequence[RunLog]) -> tuple[float, float]:
    """The same for all charts over steps, however far apart their measurements are."""
    return 0.0, max([float(run.last_step) for run in runs] + _bad_steps(runs))


def _bad_steps(runs: Sequence[RunLog]) -> list[float]:
    return [float(record["step"]) for run in runs for record in run.bad_steps]


def _residual_by_call(runs: Sequence[RunLog]) -> Chart:
    title = "Residual by solver step"
    note = "Mean over the validation text's tokens after each call of f, "
    found = [[record for record in run.valid if _residuals(record)] for run in runs]
    if len(runs) == 1:
        note += "at several moments of the run, the later the stronger the colour."
        drawn = [_moment(record, i, found[0]) for i, record in enumerate(_spread(found[0]))]
        curves = [curve for curve, _ in drawn]
        legend = tuple(entry for _, entry in drawn)
    else:
        note += "at each run's first measurement (dots) and at its last (line)."
        curves = [
            _residual_curve(record, runs[place].name, series_colour(place), stroke)
            for place, records in enumerate(found)
            for record, stroke in _ends(records)
        ]
        legend = run_entries(runs)
    if not curves:
        return Chart(title=title, note=note)
    levels = [
        Level(y=tol, label="tol") for tol in {run.number("forward.tol") for run in runs} if tol
    ]
    panel = Panel(
        curves=curves,
        x_label="calls of f",
        y_label="residual",
        y_scale="log",
        levels=levels if len(levels) == 1 else (),
        legend=False,
    )
    return Chart(title=title, note=note, panel=panel, legend=legend)


def _moment(record: Record, number: int, records: Sequence[Record]) -> tuple[Curve, Entry]:
    colour = shade(number, min(len(records), _MOMENTS))
    label = f"step {record['step']:,.0f}"
    return _residual_curve(record, label, colour, "solid"), Entry(label=label, colour=colour)


def _ends(records: Sequence[Record]) -> list[tuple[Record, Stroke]]:
    if len(records) < 2:
        return [(record, "solid") for record in records]
    return [(records[0], "dotted"), (records[-1], "solid")]


def _residual_curve(record: Record, label: str, colour: str, stroke: Stroke) -> Curve:
    y = _residuals(record)
    return Curve(label=label, x=range(1, len(y) + 1), y=y, colour=colour, stroke=stroke)


def _residuals(record: Record) -> list[float | None]:
    """After each call; empty where the log has none, None where one is not finite."""
    found = record.get("residual_by_call")
    values = [finite(value) for value in found] if isinstance(found, list) else []
    return values if any(value for value in values) else []


def _spread(records: Sequence[Record]) -> list[Record]:
    """At most five, evenly over the run, its first and last among them."""
    if len(records) <= _MOMENTS:
        return list(records)
    return [records[round(i * (len(records) - 1) / (_MOMENTS - 1))] for i in range(_MOMENTS)]
