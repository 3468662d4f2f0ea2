"""Scales of a chart: where a value lies, and at which values there are ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["linear", "log", "percentile"]

_PERCENTILES: Final = (0.0, 50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
_MOST_TICKS: Final = 6
_DECADE: Final = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Scale:
    """Takes values to [0, 1]."""

    kind: Kind
    least: float
    most: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies; one beyond the ends lies at them."""
        begin, end = _moved(self.least, self.kind), _moved(self.most, self.kind)
        place = (_moved(max(value, self.least), self.kind) - begin) / ((end - begin) or 1.0)
        return min(max(place, 0.0), 1.0)


def scale(kind: Kind, values: Sequence[float]) -> Scale:
    """One on which all of the values are."""
    if kind == "percentile":
        most = max(values, default=99.0)
        return Scale(kind, 0.0, most, tuple(p for p in _PERCENTILES if p <= most))
    if kind == "log":
        return _log([value for value in values if value > 0] or [1.0])
    return _linear(max([0.0, *values]))


def _moved(value: float, kind: Kind) -> float:
    if kind == "log":
        return math.log10(value)
    return -math.log10(1.0 - min(value, 99.9999) / 100.0) if kind == "percentile" else value


def _linear(most: float) -> Scale:
    """From 0 to a round number that is no less."""
    if most <= 0:
        return Scale("linear", 0.0, 1.0, (0.0, 1.0))
    step = _round_step(most / _MOST_TICKS)
    count = math.ceil(most / step - 1e-9)
    return Scale("linear", 0.0, count * step, tuple(i * step for i in range(count + 1)))


def _round_step(least: float) -> float:
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(n * decade for n in (1, 2, 5, 10) if n * decade >= least * (1 - 1e-9))


def _log(values: Sequence[float]) -> Scale:
    """From one number of a 1-2-5 series to another."""
    low, high = min(values), max(values)
    first = math.floor(math.log10(low))
    series = [n * 10.0**power for power in range(first, first + 15) for n in _DECADE]
    begin = max(index for index, tick in enumerate(series) if tick <= low * (1 + 1e-9))
    end = next(index for index, tick in enumerate(series) if tick >= high * (1 - 1e-9))
    end = max(end, begin + 1)
    ticks = series[begin : end + 1]
    if len(ticks) > _MOST_TICKS + 2:  # the decades alone
        ticks = [
            tick for index, tick in enumerate(series) if index % 3 == 0 and begin <= index <= end
        ]
    return Scale("log", series[begin], series[end], tuple(ticks))
