"""Figures for people, from two pages of a server's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from client.metrics_page import Labels, Page

STREAMS = ("Generate", "ScoreStream")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """Of one model, over the time between two pages; NaN where nothing was counted.

    Attributes:
        name: of the model.
        requests_per_s: calls ended.
        refused_per_s: calls refused.
        running: requests.
        waiting: requests.
        scored_per_s: tokens.
        generated_per_s: tokens.
        first_token_s: p50 and p99.
        between_tokens_s: p50 and p99.
        rows: of a call of f, mean.
        window: rows of one sequence in a call of f, mean.
        calls_per_token: calls of f, mean.
        unconverged: share of the tokens.
        busy: share of the time spent in calls of f.
        sessions: held.
        max_sessions: that may be.
        session_bytes: on the device.
    """

    name: str
    requests_per_s: float
    refused_per_s: float
    running: float
    waiting: float
    scored_per_s: float
    generated_per_s: float
    first_token_s: tuple[float, float]
    between_tokens_s: tuple[float, float]
    rows: float
    window: float
    calls_per_token: float
    unconverged: float
    busy: float
    sessions: float
    max_sessions: float
    session_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of a server.

    Attributes:
        version: with the revision of its sources.
        is_ready: whether it takes calls.
        up_s: since its start.
        cores: in use.
        memory_bytes: of the process.
        calls: running, of any kind.
        streams: those of them that are streams.
        store_up: whether the session store answers.
        store_sessions: that it has.
        store_bytes: their bytes.
        models: theirs, by name.
    """

    version: str
    is_ready: bool
    up_s: float
    cores: float
    memory_bytes: float
    calls: float
    streams: float
    store_up: bool
    store_sessions: float
    store_bytes: float
    models: tuple[ModelFigures, ...]


def figures(before: Page, now: Page, *, wall: float) -> Figures:
    """What a server did between two pages.

    Args:
        before: the earlier page. If the server has started anew since, it counts from its start.
        now: the later one.
        wall: Unix time of it.
    """
    started = _one(now, "process_start_time_seconds")
    if math.isfinite(started) and started != _one(before, "process_start_time_seconds"):
        begun = now.instant - max(wall - started, 0.0)
        before = Page(max(before.instant, begun), {})
    elapsed_s = max(now.instant - before.instant, 1e-3)
    running = now.series("deqlm_calls_running")
    names = sorted({_value(labels, "model") for labels in now.series("deqlm_engine_up")})
    return Figures(
        version=_version(now),
        is_ready=_one(now, "deqlm_ready") == 1.0,
        up_s=wall - started,
        cores=_delta(before, now, "process_cpu_seconds_total") / elapsed_s,
        memory_bytes=_one(now, "process_resident_memory_bytes"),
        calls=sum(running.values()),
        streams=sum(v for labels, v in running.items() if _value(labels, "method") in STREAMS),
        store_up=_one(now, "deqlm_store_up") == 1.0,
        store_sessions=_one(now, "deqlm_store_sessions"),
        store_bytes=_one(now, "deqlm_store_bytes"),
        models=tuple([_of_model(name, before, now, elapsed_s) for name in names]),
    )


def _of_model(name: str, before: Page, now: Page, elapsed_s: float) -> ModelFigures:
    def counted(metric: str) -> float:
        return _delta(before, now, f"deqlm_{metric}", model=name)

    def mean(histogram: str) -> float:
        return _ratio(counted(f"{histogram}_sum"), counted(f"{histogram}_count"))

    def gauge(metric: str, **labels: str) -> float:
        return _sum(now, f"deqlm_{metric}", _having(model=name, **labels))

    def quantiles(histogram: str) -> tuple[float, float]:
        counts = _buckets(before, now, f"deqlm_{histogram}_bucket", name)
        return _quantile(counts, 0.5), _quantile(counts, 0.99)

    solved = counted("nfe_per_token_count")
    return ModelFigures(
        name=name,
        requests_per_s=counted("request_success_total") / elapsed_s,
        refused_per_s=counted("rejections_total") / elapsed_s,
        running=gauge("num_requests_running"),
        waiting=gauge("num_requests_waiting"),
        scored_per_s=counted("scored_tokens_total") / elapsed_s,
        generated_per_s=counted("generation_tokens_total") / elapsed_s,
        first_token_s=quantiles("time_to_first_token_seconds"),
        between_tokens_s=quantiles("inter_token_latency_seconds"),
        rows=mean("iteration_tokens"),
        window=mean("window_tokens"),
        calls_per_token=mean("nfe_per_token"),
        unconverged=_ratio(counted("unconverged_tokens_total"), solved),
        busy=counted("f_call_seconds_sum") / elapsed_s,
        sessions=gauge("sessions"),
        max_sessions=gauge("limit", limit="max_sessions"),
        session_bytes=gauge("session_memory_bytes"),
    )


def _version(page: Page) -> str:
    for labels in page.series("deqlm_build_info"):
        return f"{_value(labels, 'version')} ({_value(labels, 'revision')})"
    return "?"


def _value(labels: Labels, name: str) -> str:
    return dict(labels).get(name, "")


def _having(**wanted: str) -> Callable[[Labels], bool]:
    return lambda labels: wanted.items() <= dict(labels).items()


def _one(page: Page, name: str) -> float:
    """The value of what has one sample; NaN where there is none."""
    return next(iter(page.series(name).values()), math.nan)


def _sum(page: Page, name: str, is_wanted: Callable[[Labels], bool]) -> float:
    return sum(value for labels, value in page.series(name).items() if is_wanted(labels))


def _delta(before: Page, now: Page, name: str, **labels: str) -> float:
    is_wanted = _having(**labels)
    return max(0.0, _sum(now, name, is_wanted) - _sum(before, name, is_wanted))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _buckets(before: Page, now: Page, name: str, model: str) -> list[tuple[float, float]]:
    """Bounds, and how many values came to be at most that, in rising order."""
    is_wanted, old = _having(model=model), before.series(name)
    return sorted(
        (float(_value(labels, "le")), value - old.get(labels, 0.0))
        for labels, value in now.series(name).items()
        if is_wanted(labels)
    )


def _quantile(counts: list[tuple[float, float]], share: float) -> float:
    """A quantile, values being spread evenly within a bucket; NaN without any."""
    total = counts[-1][1] if counts else 0.0
    if total <= 0:
        return math.nan
    low = below = 0.0
    for bound, count in counts:
        if count >= share * total:
            if math.isinf(bound):
                return low
            part = (share * total - below) / max(count - below, 1e-9)
            return low + (bound - low) * part
        low, below = bound, count
    return low
