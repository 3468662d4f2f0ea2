"""Percentiles of durations, by HDR histograms: three digits from a microsecond to an hour."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from hdrh.histogram import HdrHistogram

_UNITS_PER_S: Final = 1_000_000
_LONGEST: Final = 3600 * _UNITS_PER_S
_DIGITS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of durations in seconds; zeros where there are none."""

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Histogram:
    """Durations in seconds."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._counts = HdrHistogram(1, _LONGEST, _DIGITS)
        for value in values:
            self.add(value)

    def add(self, seconds: float) -> None:
        """Count one; what is below a microsecond counts as one, above an hour as an hour."""
        self._counts.record_value(min(max(1, round(seconds * _UNITS_PER_S)), _LONGEST))

    def add_all(self, other: Self) -> None:
        """Count those of another."""
        self._counts.add(other._counts)

    def __len__(self) -> int:
        """How many there are."""
        return int(self._counts.total_count)

    def at(self, percentile: float) -> float:
        """The duration that so many per cent are at most; 0 where there are none."""
        if not len(self):
            return 0.0
        # The library takes the nearest rank, which may be one below.
        rank = max(1, math.ceil(len(self) * percentile / 100.0 - 1e-9))
        share = 100.0 * rank / len(self)
        return float(self._counts.get_value_at_percentile(share)) / _UNITS_PER_S

    def quantiles(self) -> Quantiles:
        """Those that are reported."""
        mean = float(self._counts.get_mean_value()) / _UNITS_PER_S if len(self) else 0.0
        p50, p90, p95, p99, most = map(self.at, (50.0, 90.0, 95.0, 99.0, 100.0))
        return Quantiles(n=len(self), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=most)
