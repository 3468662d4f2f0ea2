"""Who is let in when: slots that suffice, and turns between jobs and candidates."""

import queue
import threading

import pytest

from server.engine.observer import Unobserved
from server.engine.types import EngineLimits, Failed, Scored
from tests.server.engine.helpers import Gate, running_engine, small_model

MODEL = small_model().eval()


class Counting(Unobserved):
    """Notes how many sequences shared each call of f."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.many = threading.Event()

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        self.sequences.append(sequences)
        if sequences >= 3:
            self.many.set()


def test_all_that_wait_join_the_next_call() -> None:
    gate, seen = Gate(), Counting()
    with running_engine(MODEL) as caller:
        caller.score((1,), sink=gate)
        assert gate.reached.wait(60)
        caller.engine._runner.observer = seen
        jobs = [caller.score((i, i)) for i in range(4)]
        gate.open.set()
        for job in jobs:
            caller.result(job)
    assert seen.sequences[0] == 4


def test_jobs_with_candidates_never_outgrow_the_slots() -> None:
    limits = EngineLimits(max_batch_tokens=4, max_running=1, window=2, max_sessions=1)
    gate = Gate()
    with running_engine(MODEL, limits) as caller:
        caller.score((1,), sink=gate)
        assert gate.reached.wait(60)
        jobs = [caller.score((i,), candidates=((1,), (2,), (3,))) for i in range(6)]
        gate.open.set()
        assert all(isinstance(caller.result(job), Scored) for job in jobs)


@pytest.mark.parametrize("max_running", [1, 2])
def test_neither_jobs_nor_candidates_starve(max_running: int) -> None:
    limits = EngineLimits(max_batch_tokens=8, max_running=max_running, window=2)
    gate, order = Gate(), queue.SimpleQueue[str]()
    with running_engine(MODEL, limits) as caller:
        caller.score((1,), sink=gate)
        assert gate.reached.wait(60)
        many = caller.score((1,), candidates=((1,),) * 20, sink=lambda _: order.put("many"))
        few = caller.score((1,), candidates=((1,),) * 3, sink=lambda _: order.put("few"))
        for _ in range(40):
            last = caller.score((1,), sink=lambda _: order.put("plain"))
        gate.open.set()
        ended = [order.get(timeout=60) for _ in range(42)]
    assert many
    assert few
    assert last
    assert ended.index("many") < 30, "candidates wait for as long as there are other jobs"
    if max_running > 1:
        assert ended.index("plain") < ended.index("many"), "jobs wait for all candidates"


def test_candidates_leave_room_for_others() -> None:
    """However long candidates take, a request that comes later is solved beside them."""
    limits = EngineLimits(max_batch_tokens=16, max_running=4, window=2)
    with running_engine(MODEL, limits) as caller:
        caller.engine._runner.observer = seen = Counting()
        many = caller.score((), candidates=((1,) * 50_000,) * 8)
        assert seen.many.wait(60)
        assert isinstance(caller.result(caller.score((1, 2))), Scored)
        caller.engine.cancel(many)
        assert isinstance(caller.result(many), Failed)
