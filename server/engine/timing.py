"""How long calls of f take, measured when an engine starts."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.costs import CostCurve, measure
from server.engine.limits import EngineLimits
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve

if TYPE_CHECKING:
    from server.engine.batch import Batch

WIDTH = 8
"""Rows of a sequence in the calls that are timed."""
NEAR = 3
"""One row in so many, the first ones of each sequence, is near its fixed point there: of scored
text 3.3 of 9.9 calls on a token were accurate."""
_NEVER = Solve(tol=1e-30, max_nfe=1 << 30)


def product_costs(function: Callable[[Tensor], Tensor], sample: Tensor) -> CostCurve:
    """Of a function of rows, by the first rows of ``sample``."""

    def act(rows: int) -> None:
        function(sample[:rows])
        if sample.device.type == "cuda":
            torch.cuda.synchronize(sample.device)

    return measure(lambda rows: _warm(lambda: act(rows)), most_rows=len(sample))


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
    for sequence in options:
        batch.bring_near(sequence.active[: -(-len(sequence.active) // NEAR)])
    return _warm(lambda: batch.step(scheduler, options))


def _warm(act: Callable[[], object]) -> float:
    """Seconds, after a first time."""
    act()
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
