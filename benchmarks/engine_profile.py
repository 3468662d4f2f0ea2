"""Where the time of generating and scoring goes: milliseconds per token, by part of the engine.

Methods of the running engine are timed from outside, each without those that it calls.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any
from unittest import mock

from benchmarks.engine_bench import Bench, Result, places
from benchmarks.engine_drive import Driver
from benchmarks.engine_settings import Setting
from deq_model.feed_forward import PreparedFeedForward
from deq_model.inference import InferenceFunction
from deq_model.int8_feed_forward import Int8FeedForward
from deq_model.solvers.rows import RowSolver
from server.engine import jobs
from server.engine.batch import Batch
from server.engine.guessing import Guesses
from server.engine.jobs import JobRunner
from server.engine.packing import Packing
from server.engine.rings import RingPacking

REST = "the rest"
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "feed-forward": ((PreparedFeedForward, "__call__"), (Int8FeedForward, "__call__")),
    "other products, layer norm": (
        (InferenceFunction, "channels"),
        (InferenceFunction, "finish"),
    ),
    "attention": tuple(
        (kind, name) for kind in (Packing, RingPacking) for name in ("__init__", "attend")
    ),
    "solver": ((RowSolver, "propose"), (RowSolver, "advance")),
    "tokens that enter and leave": ((Batch, "enter"), (Batch, "keep")),
    "softmax": ((jobs, "score"), (jobs, "sources")),
    "draws and guesses": ((jobs, "draw_next"), (Guesses, "make")),
    REST: ((JobRunner, "step"),),
}


class Clock:
    """Seconds by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._inside = [0.0]

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, which counts as ``part``."""

        @wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                self.seconds[part] += whole - self._inside.pop()
                self._inside[-1] += whole

        return run


@contextmanager
def watched() -> Iterator[Clock]:
    """Times all parts meanwhile; there must be one engine."""
    clock, patches = Clock(), []
    for part, methods in PARTS.items():
        for owner, name in methods:
            work = clock.timed(part, getattr(owner, name))
            patches.append(mock.patch.object(owner, name, work))
    for patch in patches:
        patch.start()
    try:
        yield clock
    finally:
        for patch in patches:
            patch.stop()


def profiles(bench: Bench) -> Result:
    """By setting and work: milliseconds per token of each part, and the rows of its calls."""
    return {setting.name: _profiles(bench, setting) for setting in bench.settings}


def _profiles(bench: Bench, setting: Setting) -> Result:
    found: Result = {}
    for streams in (1, bench.sizes.streams):
        with bench.driver(setting, max_running=places(streams)) as driver:
            texts = bench.texts(streams, bench.config.mem_len + bench.config.tgt_len)
            sessions = driver.sessions([text[: bench.config.mem_len] for text in texts])
            ways = {
                "generation": partial(_generate, driver, sessions, bench.sizes.drawn),
                "scoring": partial(_score, driver, sessions, texts),
            }
            for name, work in ways.items():
                found[f"{name}, {streams} stream(s)"] = _profile(driver, work)
        bench.tell(f"{setting.name}, {streams}")
    return found


def _profile(driver: Driver, work: Callable[[], int]) -> Result:
    begin = len(driver.calls.made)
    with watched() as clock:
        tokens = work()
    made = driver.calls.made[begin:]
    return {
        "tokens": tokens,
        "calls_per_token": len(made) / tokens,
        "rows_per_call": sum(call.rows for call in made) / len(made),
        "ms_per_token": {name: 1e3 * spent / tokens for name, spent in clock.seconds.items()},
    }


def _generate(driver: Driver, sessions: list[str], count: int) -> int:
    forks = [driver.fork(session) for session in sessions]
    pending = [driver.generate(count, seed=i, session=fork) for i, fork in enumerate(forks)]
    for job in pending:
        job.wait()
    driver.delete(forks)
    return count * len(sessions)


def _score(driver: Driver, sessions: list[str], texts: list[list[int]]) -> int:
    forks = [driver.fork(session) for session in sessions]
    blocks = [text[driver.engine.config.mem_len :] for text in texts]
    pending = [driver.score(block, session=fork) for block, fork in zip(blocks, forks, strict=True)]
    for job in pending:
        job.wait()
    driver.delete(forks)
    return sum(map(len, blocks))
