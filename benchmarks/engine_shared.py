"""What sharing costs: how long a request waits, and what idle sessions and long requests cost."""

import itertools
import random
import time
from collections.abc import Sequence
from functools import partial
from statistics import median

from benchmarks.engine_bench import Bench, Result, in_turns, places, spread
from benchmarks.engine_drive import Driver
from benchmarks.engine_settings import Setting
from benchmarks.engine_speed import steady_rate


def waits(bench: Bench) -> Result:
    """Calls of f that end between a request's coming and the first call that has a row of it.

    Long scoring requests and a stream keep the engine busy. A request that comes while a call is
    running waits for the end of that call: 1.
    """
    return {setting.name: _waits(bench, setting) for setting in bench.settings}


def _waits(bench: Bench, setting: Setting) -> Result:
    busy, draws = bench.sizes.streams, random.Random(bench.seed)
    with bench.driver(setting, max_running=places(busy + 2)) as driver:
        texts = bench.texts(busy, bench.sizes.long_request)
        others = [driver.score(text) for text in texts]
        stream = driver.generate(100_000, seed=bench.seed)
        stream.wait_drawn()
        found: list[float] = []
        for _ in range(bench.sizes.waits):
            # So that requests come at any time of a call.
            time.sleep(draws.uniform(0, 2) * driver.calls.made[-1].seconds)
            found.append(_wait(driver, texts[0][:1]))
        running = sum(not job.over for job in others)
        for job in (*others, stream):
            driver.cancel(job)
    bench.tell(setting.name)
    return {"busy_at_the_end": running, "calls": spread(found)}


def _wait(driver: Driver, token: Sequence[int]) -> float:
    """Submits a request that is answered after its first call, whatever that gave."""
    made = driver.calls.made
    job = driver.score(token, max_calls=1, owner="newcomer")
    job.wait()
    ended = job.events[-1][0]
    return float(sum(job.submitted < call.ended <= ended for call in made) - 1)


def growth(bench: Bench) -> Result:
    """Seconds per token of one stream, by the number of idle sessions held."""
    return {setting.name: _growth(bench, setting) for setting in bench.settings}


def _growth(bench: Bench, setting: Setting) -> Result:
    counts = bench.sizes.idle
    with bench.driver(setting, max_running=16, max_sessions=max(counts) + 4) as driver:
        text = bench.texts(1, bench.config.mem_len)[0]
        base = driver.session(text)
        found: dict[int, list[float]] = {count: [] for count in counts}
        for rep in range(bench.sizes.reps):
            idle: list[str] = []
            for count in counts:
                idle += _idle(driver, base, text, count - len(idle))
                found[count].append(_seconds_per_token(bench, driver, base, rep))
            driver.delete(idle)
    bench.tell(setting.name)
    return {str(count): spread(times) for count, times in found.items()}


def _idle(driver: Driver, base: str, text: list[int], count: int) -> list[str]:
    """Sessions with a full memory of their own each."""
    made = [driver.fork(base) for _ in range(count)]
    # A fork has a memory of its own once it has gone on.
    for begin in range(0, count, 64):
        part = made[begin : begin + 64]
        for job in [driver.score(text[:1], session=session) for session in part]:
            job.wait()
    return made


def _seconds_per_token(bench: Bench, driver: Driver, base: str, rep: int) -> float:
    fork = driver.fork(base)
    job = driver.generate(bench.sizes.drawn, seed=rep, session=fork)
    job.wait()
    driver.delete([fork])
    return 1 / steady_rate([job])


def gaps(bench: Bench) -> Result:
    """Median seconds between a stream's tokens: alone, and beside a long scoring request."""
    found: Result = {}
    for setting in bench.settings:
        with bench.driver(setting, max_running=4) as driver:
            base = driver.session(bench.texts(1, bench.config.mem_len)[0])
            ways = {
                "alone": partial(_gap, bench, driver, base, False),
                "beside": partial(_gap, bench, driver, base, True),
            }
            turns = in_turns(ways, bench.sizes.reps, bench.tell)
        found[setting.name] = {
            name: spread([turn["gap_s"] for turn in reps]) for name, reps in turns.items()
        }
    return found


def _gap(bench: Bench, driver: Driver, base: str, beside: bool, rep: int) -> Result:
    """The same tokens each time, whoever is beside."""
    fork = driver.fork(base)
    long = None
    if beside:
        long = driver.score(bench.texts(1, bench.sizes.long_request)[0])
    job = driver.generate(bench.sizes.drawn, seed=rep, session=fork)
    job.wait()
    if long is not None:
        driver.cancel(long)
    driver.delete([fork])
    at = job.drawn_at
    return {"gap_s": median(after - before for before, after in itertools.pairwise(at))}
