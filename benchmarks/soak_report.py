"""Whether what a soak has measured grows, and the picture of it."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WARM_UP = 1 / 3
"""First part of a run that the lines leave out: caches fill, allocators find their size."""
LONG_S = 900.0
"""From which on a line behind the warm-up tells a leak from what is still settling."""
_Z = 1.96
_HOUR_S = 3600.0
_MEMORY = "rss_mib"
SERIES = {
    _MEMORY: "resident memory, MiB",
    "threads": "threads",
    "fds": "file descriptors",
}
"""What must not grow, and its name."""
_GROSS_MIB = 32.0
"""Of memory in a run that is too short for a line."""
_HALF = 0.5
"""Of a thread or file descriptor: less over a run is none."""
ZEROS = ("sessions", "slots_used", "running", "waiting", "leases", "streams", "problems")
"""What must be nought whenever the load rests."""

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line: its slope in an hour, and the ends of its 95 % interval.

    Attributes:
        mean: of the values.
        seconds: from the first one to the last.
        per_hour: the slope.
        low: its interval's lower end.
        high: its upper end.
    """

    mean: float
    seconds: float
    per_hour: float
    low: float
    high: float

    @property
    def growth(self) -> float:
        """From the first value to the last."""
        return self.per_hour * self.seconds / _HOUR_S


def fit(times: list[float], values: list[float]) -> Line:
    """Least squares; the interval allows for samples that resemble the ones before them."""
    count = len(times)
    mean_t, mean_v = sum(times) / count, sum(values) / count
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * v for t, v in zip(times, values, strict=True)) / spread
    rest = [v - mean_v - slope * (t - mean_t) for t, v in zip(times, values, strict=True)]
    square = sum(r * r for r in rest)
    alike = sum(a * b for a, b in pairwise(rest)) / square if square else 0.0
    alike = min(max(alike, 0.0), 0.9)
    error = _Z * math.sqrt(square / (count - 2) / spread * (1 + alike) / (1 - alike))
    ends = (slope * _HOUR_S, (slope - error) * _HOUR_S, (slope + error) * _HOUR_S)
    return Line(mean_v, times[-1] - times[0], *ends)


def judged(samples: list[Sample]) -> tuple[list[Sample], dict[str, Line]]:
    """The samples behind the warm-up, and the line of each series."""
    first = math.ceil(len(samples) * WARM_UP)
    used = samples[first:]
    times = [sample["s"] for sample in used]
    return used, {name: fit(times, [s[name] for s in used]) for name in SERIES}


def problems(samples: list[Sample]) -> list[str]:
    """What grew, or was left behind."""
    _, lines = judged(samples)
    found = [f"{SERIES[name]}: {told(line)}" for name, line in lines.items() if _grew(name, line)]
    for name in ZEROS:
        if left := [sample["s"] for sample in samples if sample[name]]:
            found.append(f"{name} were left at rest, first after {left[0]:.0f} s")
    return found


def _grew(name: str, line: Line) -> bool:
    if name != _MEMORY:
        return line.low > 0 and line.growth > _HALF
    return line.low > 0 if line.seconds >= LONG_S else line.growth > _GROSS_MIB


def told(line: Line) -> str:
    """A line in words."""
    return f"{line.per_hour:+.2f} an hour ({line.low:+.2f} to {line.high:+.2f})"


def summary(samples: list[Sample]) -> dict[str, Any]:
    """The figures of a run."""
    used, lines = judged(samples)
    return {
        "rests": len(samples),
        "rests_judged": len(used),
        "seconds": samples[-1]["s"],
        "calls": samples[-1]["calls_done"],
        "lines": {name: asdict(line) for name, line in lines.items()},
        "problems": problems(samples),
    }


def draw(samples: list[Sample]) -> "Figure":
    """One panel for each series, with its line."""
    from matplotlib.figure import Figure

    from training.plots.style import INK
    from training.plots.style import SERIES as COLOURS

    used, lines = judged(samples)
    figure = Figure(figsize=(7.2, 6.6), layout="constrained")
    panels = figure.subplots(len(SERIES), 1, sharex=True)
    for axes, colour, (name, label) in zip(panels, COLOURS, SERIES.items(), strict=False):
        minutes = [sample["s"] / 60 for sample in samples]
        axes.plot(minutes, [sample[name] for sample in samples], ".-", color=colour)
        line = lines[name]
        ends = [used[0]["s"] / 60, used[-1]["s"] / 60]
        half = line.growth / 2
        axes.plot(ends, [line.mean - half, line.mean + half], "--", color=INK)
        axes.set_title(told(line), fontsize=9, loc="right")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("minutes; samples at rest, lines behind the warm-up")
    return figure


def save(samples: list[Sample], path: Path) -> None:
    """Draw into a file."""
    from training.plots.output import save_figure
    from training.plots.style import styled

    with styled():
        save_figure(draw(samples), path)
