"""The course of a run, second by second."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from loadtest.page.charts import colour
from loadtest.page.svg import Chart, Mark, Series
from loadtest.quantiles import Histogram
from loadtest.records import Record
from loadtest.results import Result
from loadtest.summary import seconds

_MOST_BINS: Final = 300
_HEIGHT: Final = 250

Timed = tuple[float, Record]
"""When something was, in seconds since the run's begin, and of which request."""


def timeline(result: Result) -> Iterator[Chart]:
    """Charts over the run's time."""
    due = [(s.run_s + one.plan.at_s, one) for s in result.stages for one in s.records]
    done = [(s.run_s + one.done_s, one) for s in result.stages for one in s.records]
    last_s = max((at_s for at_s, _ in (*due, *done)), default=1.0)
    width_s = max(1.0, math.ceil(last_s / _MOST_BINS))
    marks = [Mark(x=one.run_s, label=one.stage.label) for one in result.stages]
    every = f"every {width_s:g} s" if width_s > 1 else "every second"
    yield _chart(
        "Requests",
        f"Due, answered and failed, {every}. Lines mark the begin of each stage.",
        [
            _counted("due", due, width_s, "var(--muted)"),
            _counted("answered", (one for one in done if one[1].is_ok), width_s, colour(0)),
            _counted("failed", filter(_failed, done), width_s, colour(3)),
        ],
        "per second",
        marks,
        last_s,
    )
    yield _latencies(due, width_s, marks, last_s)
    yield _chart(
        "The server",
        "Requests that it works on, and that wait, by its own metrics.",
        [
            _gauge("running", result, colour(0)),
            _gauge("waiting", result, colour(1)),
            _gauge("sessions", result, colour(2)),
        ],
        "requests, sessions",
        marks,
        last_s,
    )
    yield _chart(
        "The server's memory",
        "Resident, by its own metrics.",
        [_gauge("memory_bytes", result, colour(4), 2.0**-20)],
        "MiB",
        marks,
        last_s,
    )


def _failed(one: Timed) -> bool:
    return not one[1].is_ok and one[1].plan.kind != "cancel"


def _chart(
    title: str,
    note: str,
    series: list[Series],
    y_label: str,
    marks: list[Mark],
    last_s: float,
    show_y: Callable[[float], str] = "{:.4g}".format,
    is_log: bool = False,
) -> Chart:
    return Chart(
        title=title,
        note=note,
        series=series,
        x_label="seconds since the run's begin",
        y_label=y_label,
        y_kind="log" if is_log else "linear",
        show_y=show_y,
        marks=marks,
        x_most=last_s,
        height=_HEIGHT,
        wide=True,
    )


def _bins(timed: Iterable[Timed], width_s: float) -> dict[int, list[Record]]:
    found = defaultdict(list)
    for at_s, record in timed:
        found[int(at_s // width_s)].append(record)
    return found


def _counted(label: str, timed: Iterable[Timed], width_s: float, shown: str) -> Series:
    bins = _bins(timed, width_s)
    last = max(bins, default=-1)
    points = [((i + 0.5) * width_s, len(bins.get(i, ())) / width_s) for i in range(last + 1)]
    return Series(label=label, points=points, colour=shown, dots=False)


def _latencies(due: list[Timed], width_s: float, marks: list[Mark], last_s: float) -> Chart:
    bins = _bins((one for one in due if one[1].is_ok and one[1].plan.kind != "cancel"), width_s)
    found = {i: Histogram(one.seconds for one in some) for i, some in sorted(bins.items())}
    return _chart(
        "Latency",
        "Of the requests that were due at that time, and were answered.",
        [
            Series(
                label=name,
                points=[((i + 0.5) * width_s, one.at(rank)) for i, one in found.items()],
                colour=shown,
                dots=False,
            )
            for rank, name, shown in ((50.0, "p50", colour(0)), (99.0, "p99", colour(3)))
        ],
        "seconds since due",
        marks,
        last_s,
        seconds,
        is_log=True,
    )


def _gauge(name: str, result: Result, shown: str, unit: float = 1.0) -> Series:
    points = [(one["run_s"], one[name] * unit) for one in result.samples if name in one]
    return Series(label=name.partition("_")[0], points=points, colour=shown, dots=False)
