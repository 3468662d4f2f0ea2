"""Charts as SVG within a page; colours come from the page's style, for light and for dark."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from loadtest.page.scales import Kind, Scale, scale

WIDTH: Final = 640
_HEIGHT: Final = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 14, 46

Show = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        label: in the legend.
        points: in order.
        colour: of the style, such as ``var(--c1)``.
        dots: whether points are marked; each tells its values when it is pointed at.
        dashed: whether the line is.
        notes: what a point tells besides; as many as points, or none.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = True
    dashed: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart and what is around it.

    Attributes:
        title: above it.
        note: how to read it.
        series: its lines; one without points is left out.
        x_label: below it.
        y_label: beside it.
        x_kind: scale.
        y_kind: scale.
        show_x: a value as text.
        show_y: a value as text.
        marks: vertical lines.
        x_most: value that is still on the scale, for charts that are to have the same.
        height: of the drawing.
        wide: whether it takes the page's whole width.
    """

    title: str
    note: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    x_kind: Kind = "linear"
    y_kind: Kind = "linear"
    show_x: Show = "{:g}".format
    show_y: Show = "{:g}".format
    marks: Sequence[Mark] = ()
    x_most: float = 0.0
    height: int = _HEIGHT
    wide: bool = False

    @property
    def width(self) -> int:
        """Of the drawing."""
        return 2 * WIDTH if self.wide else WIDTH

    @property
    def drawn(self) -> list[Series]:
        """The series that have points."""
        return [one for one in self.series if one.points]


def figure(chart: Chart) -> str:
    """The chart with title, note and legend; empty where there is nothing to draw."""
    if not chart.drawn:
        return ""
    return "\n".join(
        [
            f'<figure class="{"wide" if chart.wide else ""}">',
            f"<figcaption><b>{escape(chart.title)}</b> {escape(chart.note)}</figcaption>",
            *_drawing(chart),
            '<p class="legend">',
            *(_entry(one) for one in chart.drawn if one.label),
            "</p>",
            "</figure>",
        ]
    )


def _entry(one: Series) -> str:
    dash = ' stroke-dasharray="4 3"' if one.dashed else ""
    line = f'<line x1="0" y1="5" x2="22" y2="5" stroke-width="2.5"{dash}/>'
    key = f'<svg width="22" height="10" style="stroke:{one.colour}" aria-hidden="true">{line}</svg>'
    return f"<span>{key}{escape(one.label)}</span>"


def _drawing(chart: Chart) -> Iterator[str]:
    points = [point for one in chart.drawn for point in one.points]
    xs = [p[0] for p in points] + [mark.x for mark in chart.marks]
    x = scale(chart.x_kind, [*xs, chart.x_most] if chart.x_most else xs)
    y = scale(chart.y_kind, [p[1] for p in points])
    yield (
        f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    )
    yield from _axes(chart, x, y)
    for mark in chart.marks:
        left = _x(chart, x, mark.x)
        yield f'<line class="mark" x1="{left}" x2="{left}" y1="{_TOP}" y2="{_floor(chart)}"/>'
        yield f'<text class="mark" x="{left + 4}" y="{_TOP + 9}">{escape(mark.label)}</text>'
    for one in chart.drawn:
        yield from _line(chart, one, x, y)
    yield "</svg>"


def _floor(chart: Chart) -> int:
    return chart.height - _BOTTOM


def _x(chart: Chart, x: Scale, value: float) -> float:
    return round(_LEFT + x.at(value) * (chart.width - _LEFT - _RIGHT), 1)


def _y(chart: Chart, y: Scale, value: float) -> float:
    return round(_floor(chart) - y.at(value) * (_floor(chart) - _TOP), 1)


def _axes(chart: Chart, x: Scale, y: Scale) -> Iterator[str]:
    right, floor = chart.width - _RIGHT, _floor(chart)
    for tick in y.ticks:
        top = _y(chart, y, tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{top}" y2="{top}"/>'
        told = escape(chart.show_y(tick))
        yield f'<text class="tick" x="{_LEFT - 7}" y="{top + 4}" text-anchor="end">{told}</text>'
    for tick in x.ticks:
        left = _x(chart, x, tick)
        yield f'<line class="grid" x1="{left}" x2="{left}" y1="{_TOP}" y2="{floor}"/>'
        told = escape(chart.show_x(tick))
        yield f'<text class="tick" x="{left}" y="{floor + 17}" text-anchor="middle">{told}</text>'
    middle = (_LEFT + right) / 2
    label = f'text-anchor="middle">{escape(chart.x_label)}</text>'
    yield f'<text class="label" x="{middle}" y="{chart.height - 8}" {label}'
    middle = (_TOP + floor) / 2
    turned = f'transform="translate(13 {middle}) rotate(-90)" text-anchor="middle"'
    yield f'<text class="label" {turned}>{escape(chart.y_label)}</text>'


def _line(chart: Chart, one: Series, x: Scale, y: Scale) -> Iterator[str]:
    places = [(_x(chart, x, a), _y(chart, y, b)) for a, b in one.points]
    joined = " ".join(f"{a},{b}" for a, b in places)
    dash = ' stroke-dasharray="6 4"' if one.dashed else ""
    yield f'<polyline class="line" style="stroke:{one.colour}"{dash} points="{joined}"/>'
    if not one.dots:
        return
    for number, ((left, top), (a, b)) in enumerate(zip(places, one.points, strict=True)):
        note = f"{one.notes[number]}: " if one.notes else ""
        told = escape(f"{one.label}: {note}{chart.show_x(a)}, {chart.show_y(b)}")
        yield (
            f'<circle class="dot" style="fill:{one.colour}" cx="{left}" cy="{top}" r="3.5">'
            f"<title>{told}</title></circle>"
        )
