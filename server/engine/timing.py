"""How long calls of f take, measured when an engine starts."""

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from torch import Tensor

from server.engine.costs import CostCurve
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.types import EngineLimits, Solve

if TYPE_CHECKING:
    from server.engine.batch import Batch

REPETITIONS = 3
WIDTH = 8
"""Rows of a sequence in the calls that are timed."""
LONGEST_S = 0.25
"""Larger calls than the first one that takes so long are in proportion."""
_NEVER = Solve(tol=1e-30, max_nfe=1 << 30)


def product_costs(function: Callable[[Tensor], Tensor], sample: Tensor) -> CostCurve:
    """Of a function of rows, by the first rows of ``sample``."""
    return _curve(len(sample), lambda rows: _repeated(lambda: function(sample[:rows])))


def call_costs(batch: "Batch", slab: Slab, limits: EngineLimits) -> CostCurve:
    """Of whole calls, from where a solve stands to who is done; the work area is empty after it."""
    curve = _curve(limits.max_batch_tokens, lambda rows: _time_call(batch, slab, limits, rows))
    for row in range(limits.max_running):
        slab.reset(row)
    return curve


def _curve(most: int, seconds: Callable[[int], float]) -> CostCurve:
    points: list[tuple[int, float]] = []
    rows = 1
    while not points or (rows <= most and points[-1][1] < LONGEST_S):
        points.append((rows, seconds(rows)))
        rows *= 2
    return CostCurve.measured(points)


def _time_call(batch: "Batch", slab: Slab, limits: EngineLimits, rows: int) -> float:
    """A call with whole memories, of tokens that are not accepted."""
    scheduler = Scheduler(
        max_batch_tokens=limits.max_batch_tokens,
        max_running=limits.max_running,
        window=slab.ring - slab.klen,
    )
    width = min(WIDTH, slab.ring - slab.klen)
    options = {}
    for slot in range(min(limits.max_running, -(-rows // width))):
        wanted = min(width, rows - slot * width)
        sequence = Sequence(slot=slot, start=slab.klen, inputs=[0] * wanted)
        scheduler.add(sequence)
        options[sequence] = _NEVER
    batch.enter(scheduler.enter())
    return _repeated(lambda: batch.step(scheduler, options))


def _repeated(act: Callable[[], object]) -> float:
    """Seconds, the median of a few times after a first one."""
    act()
    times = []
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return median(times)
