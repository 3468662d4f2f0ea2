"""Who shares a call of f changes nobody's answer; and beside streams calls stay short."""

import functools
import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.costs import CostCurve
from server.engine.limits import EngineLimits
from server.engine.observer import Unobserved
from server.engine.requests import Stop
from server.engine.results import Generated, PromptSolved
from server.engine.scheduler import STREAM_SLOWDOWN
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    logprobs,
    reference,
    running_engine,
)

TEXT = tuple(torch.randint(0, 40, (60,), generator=torch.Generator().manual_seed(1)).tolist())
PROPORTIONAL = CostCurve.measured([(1, 1e-3)])
RISING = CostCurve.measured([(1, 1e-3), (24, 3e-3)])


@functools.cache
def likelihoods(begin: int) -> list[float]:
    return reference(MODEL, TEXT[begin : begin + 10])


class Rows(Unobserved):
    """Notes rows and sequences of each call of f."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.some = threading.Event()

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        self.calls.append((rows, sequences))
        if len(self.calls) > 40:
            self.some.set()


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_windows_that_change_while_rows_rest_change_no_answer(data: st.DataObject) -> None:
    curves = st.sampled_from((None, None, PROPORTIONAL, RISING))
    lengths = data.draw(st.lists(st.integers(1, 10), min_size=2, max_size=3))
    texts = [TEXT[20 * i : 20 * i + n] for i, n in enumerate(lengths)]
    priorities = [data.draw(st.integers(0, 2)) for _ in texts]
    limits = EngineLimits(max_batch_tokens=24, max_running=8, window=7)
    with running_engine(MODEL, limits) as caller:
        scheduler = caller.engine._scheduler
        planned = itertools.cycle(data.draw(st.lists(curves, min_size=5, max_size=20)))

        class Changing(Unobserved):
            def step(self, *, rows: int, sequences: int, seconds: float) -> None:
                scheduler.costs = next(planned)

        caller.engine._runner.observer = Changing()
        stream = caller.generate(TEXT[:5], 6, stop=Stop(max_tokens=6, eos_id=None))
        jobs = [
            caller.score(text, owner=str(i % 2), priority=priority)
            for i, (text, priority) in enumerate(zip(texts, priorities, strict=True))
        ]
        for i, (text, job) in enumerate(zip(texts, jobs, strict=True)):
            expected = likelihoods(20 * i)[: len(text)]
            assert logprobs(caller.result(job)) == pytest.approx(expected, abs=NEAR)
        assert isinstance(caller.result(stream), Generated)


def test_long_scoring_beside_a_stream_gets_what_the_stream_bears() -> None:
    limits = EngineLimits(max_batch_tokens=24, max_running=4, window=20, guess_ahead=0)
    with running_engine(MODEL, limits) as caller:
        caller.engine._scheduler.costs = RISING
        stream = caller.generate((1,), 100_000, stop=Stop(max_tokens=100_000, eos_id=None))
        assert isinstance(caller.open[stream].get(timeout=60), PromptSolved)
        caller.engine._runner.observer = alone = Rows()
        assert alone.some.wait(60)
        long = caller.score(TEXT * 800, owner="long")
        caller.engine._runner.observer = seen = Rows()
        assert seen.some.wait(60)
        assert set(alone.calls) == {(1, 1)}
        together = [rows for rows, sequences in seen.calls if sequences == 2]
        bearable = RISING.within(STREAM_SLOWDOWN * RISING.seconds(1))
        assert max(together) == bearable < RISING.best_rows()
        caller.engine._scheduler.costs = PROPORTIONAL
        caller.engine._runner.observer = seen = Rows()
        assert seen.some.wait(60)
        assert set(seen.calls[2:]) == {(2, 2)}
        caller.scored(caller.score((1, 2, 3), owner="new"))
        for job in (stream, long):
            caller.engine.cancel(job)
            caller.result(job)
