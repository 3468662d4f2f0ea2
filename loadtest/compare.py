"""``deqlm loadtest compare``: what got better or worse from one run to another."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.figures import Figures
from loadtest.quantiles import Histogram
from loadtest.summary import SHARED, Table, number, seconds
from loadtest.timings import timings

LEAST_BEYOND: Final = 5
"""Durations beyond a percentile that is compared; fewer tell of chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How much worse a figure may get.

    Attributes:
        tolerance: largest share by which a figure may be worse, beyond what repeats differ among
            themselves
        percentiles: whether percentiles of times are judged, or rates alone
    """

    tolerance: float = 0.1
    percentiles: bool = True

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance must be a number from 0 on, got {self.tolerance:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in both runs.

    Attributes:
        stage: label of the stage.
        name: of the figure.
        before: in the first run.
        after: in the second.
        ratio: after over before.
        worse: share by which it got worse; below 0 where it got better.
        is_clear: whether all repeats of one run are beyond all of the other.
        show: the figure as text.
    """

    stage: str
    name: str
    before: float
    after: float
    ratio: float
    worse: float
    is_clear: bool
    show: Callable[[float], str]

    def verdict(self, tolerance: float) -> str:
        """``worse``, ``better``, or nothing."""
        if not self.is_clear or abs(self.worse) <= tolerance:
            return ""
        return "worse" if self.worse > 0 else "better"


_RATES: Final = (
    ("answered/s", "answered_per_s", True),
    ("good/s", "good_per_s", True),
    ("tokens/s", "tokens_per_s", True),
    ("perplexity", "perplexity", False),
    ("calls of f per token", "nfe", False),
)
"""Name, field, and whether more is better."""
_TIMES: Final[tuple[tuple[str, Callable[..., Histogram]], ...]] = (
    ("whole", lambda timings: timings.every),
    ("first token", lambda timings: timings.first),
    ("between tokens", lambda timings: timings.gap),
)


def changes(
    before: Sequence[Figures], after: Sequence[Figures], *, percentiles: bool
) -> list[Change]:
    """Every figure of the stages that both runs have."""
    others = {one.label: one for one in after}
    return [
        change
        for one in before
        if one.label in others
        for change in (
            *_of_rates(one, others[one.label]),
            *(_of_times(one, others[one.label]) if percentiles else ()),
        )
    ]


def _of_rates(a: Figures, b: Figures) -> Iterator[Change]:
    for name, field, more_is_better in _RATES:
        before, after = a.values(field), b.values(field)
        is_clear = _are_apart(before, after)
        yield _change(a.label, name, a.mean(field), b.mean(field), number, more_is_better, is_clear)


def _of_times(a: Figures, b: Figures) -> Iterator[Change]:
    repeats = [[timings([result]) for result in one.results] for one in (a, b)]
    for name, pick in _TIMES:
        before, after = pick(a.timings), pick(b.timings)
        for rank, word in ((50.0, "p50"), (90.0, "p90"), (99.0, "p99")):
            count = min(len(before), len(after))
            if count * (1.0 - rank / 100.0) >= LEAST_BEYOND:
                values = before.at(rank), after.at(rank)
                is_clear = _are_apart(*(_of_each(map(pick, some), rank) for some in repeats))
                yield _change(a.label, f"{name} {word}", *values, seconds, False, is_clear)


def _of_each(repeats: Iterable[Histogram], rank: float) -> list[float]:
    return [one.at(rank) for one in repeats if len(one)]


def _are_apart(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether all repeats of one run are beyond all of the other."""
    return min(before) > max(after) or min(after) > max(before)


def _change(
    stage: str,
    name: str,
    before: float,
    after: float,
    show: Callable[[float], str],
    more_is_better: bool,
    is_clear: bool,
) -> Change:
    ratio = after / before if before else (1.0 if after == before else math.inf)
    worse = -_growth(before, after) if more_is_better else _growth(before, after)
    return Change(
        stage=stage,
        name=name,
        before=before,
        after=after,
        ratio=ratio,
        worse=worse,
        is_clear=is_clear and before != after,
        show=show,
    )


def _growth(before: float, after: float) -> float:
    """0 where there is nothing to tell."""
    if not (math.isfinite(before) and math.isfinite(after)) or before == after:
        return 0.0
    return (after - before) / before if before else math.inf


def table_of(found: Sequence[Change], tolerance: float) -> Table:
    """For a terminal."""
    header = ("stage", "figure", "before", "after", "change", "")
    rows = [
        [
            one.stage,
            one.name,
            one.show(one.before),
            one.show(one.after),
            f"{one.ratio - 1:+.1%}" if math.isfinite(one.ratio) else "–",
            one.verdict(tolerance),
        ]
        for one in found
    ]
    return Table(header, rows, (0, 1, 5))


def unlike(before: Sequence[Figures], after: Sequence[Figures]) -> Iterator[str]:
    """Stages of which the server had solved much more in one run than in the other."""
    others = {one.label: one for one in after}
    for one in before:
        other = others.get(one.label)
        shares = [it.mean("shared_share") for it in (one, other) if it is not None]
        if max(shares) - min(shares) > SHARED:
            yield (
                f"{one.label}: {shares[0]:.0%} of the tokens had been solved by the server before, "
                f"{shares[-1]:.0%} after; start it anew before each run that uses the same seed"
            )


def differences(before: dict[str, object], after: dict[str, object], name: str = "") -> list[str]:
    """Settings in which two runs differ, of which figures may tell more than of the server."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        a, b, path = before.get(key), after.get(key), f"{name}.{key}" if name else key
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, path)
        elif a != b:
            found.append(f"{path}: {a} before, {b} after")
    return found
