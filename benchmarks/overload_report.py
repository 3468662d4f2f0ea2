"""What an overload has shown, in figures."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.overload_load import Outcome, Told

Buckets = dict[float, float]
"""Of a Prometheus histogram: how many were at most so many seconds."""
_BUCKET = re.compile(r'deqlm_refusal_seconds_bucket\{.*le="([^"]+)".*\} (\S+)')


@dataclass(frozen=True, slots=True)
class ServerTold:
    """What a server's metrics told.

    Attributes:
        at: instant.
        cpu_s: of CPU time that it has taken.
        rss_mib: its memory.
        refusals: how long they took from their calls' arrival.
    """

    at: float
    cpu_s: float
    rss_mib: float
    refusals: Buckets

    @staticmethod
    def read(lines: Sequence[str]) -> "ServerTold":
        """From the page of metrics, now."""
        single = dict(line.rsplit(" ", 1) for line in lines if line.startswith("process_"))
        found = [match for line in lines if (match := _BUCKET.fullmatch(line))]
        return ServerTold(
            time.perf_counter(),
            float(single["process_cpu_seconds_total"]),
            float(single["process_resident_memory_bytes"]) / (1 << 20),
            {float(match[1]): float(match[2]) for match in found},
        )


def summary(told: Sequence[Told], seconds: float, deadline_s: float) -> dict[str, Any]:
    """Figures of one load, of all processes of callers together."""
    outcomes = [outcome for some in told for outcome in some.outcomes]
    good = [o.seconds for o in outcomes if _is_good(o, deadline_s)]
    refused = [o.seconds for o in outcomes if o.code == "RESOURCE_EXHAUSTED"]
    late = sum(o.code in ("OK", "DEADLINE_EXCEEDED") for o in outcomes) - len(good)
    accepted = len(good) + late
    return {
        "calls": len(outcomes),
        "goodput_per_s": len(good) / seconds,
        "refused": len(refused),
        "late": late,
        "accepted_in_time": len(good) / accepted if accepted else None,
        "other": len(outcomes) - accepted - len(refused),
        "answered_s": percentiles(good),
        "refused_s": percentiles(refused),
        "sent_late_s": percentiles([o.late_s for o in outcomes]),
        "lag_of_callers_s": percentiles([lag for some in told for lag in some.lags_s]),
        "cores_of_callers": sum(some.cpu_s for some in told) / seconds,
    }


def _is_good(outcome: Outcome, deadline_s: float) -> bool:
    return outcome.code == "OK" and outcome.seconds <= deadline_s


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Some of them; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return {f"p{p}": ranked[min(len(ranked) - 1, len(ranked) * p // 100)] for p in (50, 90, 99)}


def refused_between(before: Buckets, after: Buckets) -> dict[str, Any] | None:
    """How long refusals took from their calls' arrival: the bucket in which a percentile lies."""
    grown = {most: after[most] - before.get(most, 0.0) for most in sorted(after)}
    count = grown[max(grown)] if grown else 0.0
    if not count:
        return None
    found: dict[str, Any] = {
        f"p{p}_at_most": next(most for most, n in grown.items() if n >= count * p / 100)
        for p in (50, 90, 99)
    }
    return {"count": count, **found, "within_10_ms": grown[0.01] / count}


def pooled(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians over rounds, and the share of the most goodput that the highest load has left."""
    loads = {
        load: {
            "goodput_per_s": [figures[load]["goodput_per_s"] for figures in rounds],
            "accepted_in_time": _accepted_in_time([figures[load] for figures in rounds]),
        }
        for load in rounds[0]
    }
    kept = [
        list(figures.values())[-1]["goodput_per_s"]
        / max(load["goodput_per_s"] for load in figures.values())
        for figures in rounds
    ]
    return {"goodput_kept": median(kept), "goodput_kept_by_round": kept, "loads": loads}


def _accepted_in_time(loads: Sequence[dict[str, Any]]) -> float | None:
    late = sum(load["late"] for load in loads)
    accepted = sum(load["calls"] - load["refused"] - load["other"] for load in loads)
    return 1.0 - late / accepted if accepted else None
