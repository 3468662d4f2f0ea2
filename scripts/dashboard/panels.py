"""Panels of the dashboard, and the queries behind their lines."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap", "table"]
Row = tuple[str, tuple["Panel", ...]]
"""Title, and panels from left to right."""
Queries = tuple[tuple[str, str], ...]
"""Legend and query of each line."""

HERE = 'instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
EACH = "$__rate_interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One of them.

    Attributes:
        title: of it.
        queries: its lines.
        unit: as Grafana names it.
        text: what it tells, where the title does not.
        kind: of panel.
        width: of 24.
        height: in units of Grafana's.
        least: where the axis begins; None for where the values do.
        bad_from: value from which a figure is red.
        exemplars: whether its lines have dots that lead to traces.
    """

    title: str
    queries: Queries
    unit: str = "short"
    text: str = ""
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 7
    least: float | None = 0
    bad_from: float | None = None
    exemplars: bool = False


def rate(name: str, *by: str, where: str = MODEL) -> str:
    return f"sum by ({', '.join(by)}) (rate({name}{{{where}}}[{EACH}]))"


def mean(histogram: str) -> str:
    return f"{rate(histogram + '_sum', 'model')} / {rate(histogram + '_count', 'model')}"


def quantile(share: float, histogram: str, *by: str, where: str = MODEL) -> str:
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', *by, 'le', where=where)})"


def gauge(name: str, *by: str, where: str = MODEL) -> str:
    return f"sum by ({', '.join(by)}) ({name}{{{where}}})"


def quantiles(
    title: str,
    histogram: str,
    text: str = "",
    *,
    by: str = "model",
    where: str = MODEL,
    unit: str = "s",
    exemplars: bool = True,
) -> Panel:
    lines = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    return Panel(
        title=title,
        queries=tuple(
            [
                (f"{word} {{{{{by}}}}}", quantile(share, histogram, by, where=where))
                for share, word in lines
            ]
        ),
        unit=unit,
        text=text,
        exemplars=exemplars,
    )


def within(title: str, histogram: str, *bounds: str) -> Panel:
    """The share of a histogram's values within bounds of its buckets."""
    count = rate(f"{histogram}_count", "model")
    where = f"{MODEL},le="
    lines = [
        (
            f"{bound} s {{{{model}}}}",
            rate(f"{histogram}_bucket", "model", where=f'{where}"{bound}"'),
        )
        for bound in bounds
    ]
    queries = tuple([(legend, f"{rate} / {count}") for legend, rate in lines])
    text = "A line is missing where metrics_buckets has no such bound."
    return Panel(title=title, queries=queries, unit="percentunit", text=text)


def heat(title: str, histogram: str, unit: str = "short") -> Panel:
    queries = (("{{le}}", rate(f"{histogram}_bucket", "le")),)
    return Panel(title=title, queries=queries, unit=unit, kind="heatmap", least=None)


def figure(title: str, query: str, unit: str = "short", bad_from: float | None = None) -> Panel:
    return Panel(
        title=title,
        queries=(("", query),),
        unit=unit,
        kind="stat",
        width=3,
        height=4,
        bad_from=bad_from,
    )


SUCCESS = "deqlm_request_success_total"
SOLVED = rate("deqlm_nfe_per_token_count", "model")
