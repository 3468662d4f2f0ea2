"""How long calls of f take, measured when an engine starts."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.engine.costs import CostCurve, measure
from server.engine.limits import EngineLimits
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve

if TYPE_CHECKING:
    from server.engine.batch import Batch

REPEATS = 5
"""How often a call of a size is timed."""

WIDTH = 8
"""Rows of a sequence in the calls that are timed."""
_NEVER = Solve(tol=1e-30, max_nfe=1 << 30)


def call_costs(batch: "Batch", slab: Slab, limits: EngineLimits) -> CostCurve:
    """Of whole calls, from where a solve stands to who is done; the work area is empty after it."""
    width = min(WIDTH, slab.ring - slab.klen)
    most = min(limits.max_batch_tokens, limits.max_running * width)
    curve = measure(lambda rows: _time_call(batch, slab, limits, rows), most_rows=most)
    for row in range(limits.max_running):
        slab.reset(row)
    return curve


def _time_call(batch: "Batch", slab: Slab, limits: EngineLimits, rows: int) -> float:
    """A call in the midst of solves, with whole memories, of tokens that are not accepted."""
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
    return _least(lambda: batch.step(scheduler, options))


def _least(act: Callable[[], object]) -> float:
    """Seconds, after a first time; the quickest counts, the others were disturbed."""
    act()
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
