"""Which charts a page has."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from loadtest.figures import Figures
from loadtest.page.svg import Chart, Mark, Series
from loadtest.quantiles import Histogram
from loadtest.results import Result
from loadtest.summary import seconds

_RANKS: Final = ((50.0, "p50"), (90.0, "p90"), (95.0, "p95"), (99.0, "p99"))
_CURVE: Final = (0.0, *range(5, 90, 5), 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8, 99.9)
_HUES: Final = (200.0, -20.0)
"""Of the lightest load, and of the heaviest."""


def colour(number: int) -> str:
    """Of a series that has no order among others."""
    return f"var(--c{number % 6})"


def shade(place: int, count: int) -> str:
    """Of one of several that have an order: from blue to red."""
    share = place / max(count - 1, 1)
    hue = (_HUES[0] + share * (_HUES[1] - _HUES[0])) % 360
    return f"hsl({hue:.0f} 70% var(--shade))"


def charts(result: Result, swept: Sequence[Figures]) -> Iterator[Chart]:
    """The charts over the load, and those of percentiles; some may have nothing to draw."""
    x_label = "clients" if swept[0].results[0].stage.is_closed else "requests due per second"
    marks = [] if swept[0].results[0].stage.is_closed else _capacity(result)
    yield _latency_throughput(swept)
    yield _throughput(swept, x_label, marks)
    yield _tokens(swept, x_label, marks)
    for name, note, pick in (
        ("First token over load", "Generations, from when they were due.", lambda t: t.first),
        ("Between tokens over load", "All gaps of all generations.", lambda t: t.gap),
    ):
        yield _over_load(name, note, swept, x_label, marks, pick)
    for name, note, pick in (
        ("Latency by percentile", "Whole requests, from when they were due.", lambda t: t.every),
        ("First token by percentile", "Generations.", lambda t: t.first),
        ("Gaps between tokens by percentile", "All generations pooled.", lambda t: t.gap),
    ):
        yield _by_percentile(name, note, swept, pick)


def _capacity(result: Result) -> list[Mark]:
    """Where the measured capacity is, of which the stages are multiples."""
    found = [s.stage.rate / s.stage.times for s in result.swept if s.stage.times and s.stage.rate]
    is_trace = result.settings.load.pattern == "trace"
    return [Mark(x=found[0], label="capacity")] if found and not is_trace else []


def _latency_throughput(swept: Sequence[Figures]) -> Chart:
    return Chart(
        title="Latency over throughput",
        note="Each point is a stage. Where the line goes up without going right, the server "
        "answers no more, and requests wait.",
        series=[
            Series(
                label=name,
                points=[
                    (one.mean("answered_per_s"), one.timings.every.at(rank))
                    for one in swept
                    if len(one.timings.every)
                ],
                notes=[one.label for one in swept if len(one.timings.every)],
                colour=colour(number),
            )
            for number, (rank, name) in enumerate(_RANKS)
        ],
        x_label="requests answered per second",
        y_label="seconds since due",
        y_kind="log",
        show_x="{:.4g}".format,
        show_y=seconds,
    )


def _throughput(swept: Sequence[Figures], x_label: str, marks: Sequence[Mark]) -> Chart:
    loads = [one.load for one in swept]
    ideal = [(load, load) for load in loads] if x_label != "clients" else []
    return Chart(
        title="Answers over load",
        note="Good answers came within their objectives. A server that is overloaded should keep "
        "its good answers, and refuse the rest.",
        series=[
            Series(
                label="all of them", points=ideal, colour="var(--muted)", dots=False, dashed=True
            ),
            _rate("answered", "answered_per_s", swept, 0),
            _rate("good", "good_per_s", swept, 2),
        ],
        x_label=x_label,
        y_label="requests per second",
        show_x="{:.4g}".format,
        show_y="{:.4g}".format,
        marks=marks,
    )


def _rate(label: str, name: str, swept: Sequence[Figures], number: int) -> Series:
    points = [(one.load, one.mean(name)) for one in swept]
    notes = [one.label for one in swept]
    return Series(label=label, points=points, notes=notes, colour=colour(number))


def _tokens(swept: Sequence[Figures], x_label: str, marks: Sequence[Mark]) -> Chart:
    return Chart(
        title="Tokens over load",
        note="Scored and generated; the table has the perplexity of what was scored.",
        series=[
            _rate("scored", "scored_per_s", swept, 0),
            _rate("generated", "generated_per_s", swept, 1),
        ],
        x_label=x_label,
        y_label="tokens per second",
        show_x="{:.4g}".format,
        show_y="{:.4g}".format,
        marks=marks,
    )


Pick = Callable[..., Histogram]


def _over_load(
    title: str, note: str, swept: Sequence[Figures], x_label: str, marks: Sequence[Mark], pick: Pick
) -> Chart:
    some = [one for one in swept if len(pick(one.timings))]
    return Chart(
        title=title,
        note=note,
        series=[
            Series(
                label=name,
                points=[(one.load, pick(one.timings).at(rank)) for one in some],
                notes=[one.label for one in some],
                colour=colour(number),
            )
            for number, (rank, name) in enumerate(_RANKS)
        ],
        x_label=x_label,
        y_label="seconds",
        y_kind="log",
        show_x="{:.4g}".format,
        show_y=seconds,
        marks=marks,
    )


def _by_percentile(title: str, note: str, swept: Sequence[Figures], pick: Pick) -> Chart:
    return Chart(
        title=title,
        note=note,
        series=[
            Series(
                label=one.label,
                points=_curve(pick(one.timings)),
                colour=shade(place, len(swept)),
                dots=False,
            )
            for place, one in enumerate(swept)
        ],
        x_label="per cent of them took at most",
        y_label="seconds",
        x_kind="percentile",
        y_kind="log",
        show_y=seconds,
    )


def _curve(histogram: Histogram) -> list[tuple[float, float]]:
    """No further than there are requests to tell of."""
    count = len(histogram)
    if not count:
        return []
    last = 100.0 * (1.0 - 1.0 / count) if count > 1 else 50.0
    ranks = [float(rank) for rank in _CURVE if rank <= max(last, 50.0)]
    return [(rank, histogram.at(rank)) for rank in ranks if math.isfinite(rank)]
