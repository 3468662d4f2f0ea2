"""Solves that begin at fitted states: the same answers, in fewer calls of f."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.solvers.options import SolverOptions
from deq_model.warm_start import WarmStart
from server.engine.batch import Batch
from server.engine.limits import EngineLimits
from server.engine.observer import Unobserved
from server.engine.requests import Sampling, Stop
from server.engine.results import Scored
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve
from tests.server.engine.helpers import (
    NEAR,
    TEXT,
    Caller,
    drawn_ids,
    logprobs,
    reference,
    running_engine,
    small_model,
)
from training.calibration.fit import fit_linear
from training.calibration.samples import samples_of
from training.calibration.window import solve_streams

MODEL = small_model().eval().requires_grad_(False)
DIM = MODEL.config.d_model


def fitted_map() -> WarmStart:
    tokens = torch.randint(0, 40, (16, 60), generator=torch.Generator().manual_seed(2))
    solved = solve_streams(MODEL, MODEL.f.fold(), tokens, SolverOptions(tol=1e-6, max_nfe=200))
    return fit_linear(*samples_of(MODEL, tokens, solved.z_star))


MAP = fitted_map()
COPY = WarmStart(
    from_injection=torch.zeros(DIM, 3 * DIM),
    from_previous=2 * torch.eye(DIM),
    bias=torch.ones(DIM),
)
"""Of a state z it makes 2 z + 1, so that a first state tells what it was made of."""


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    with running_engine(MODEL, warm_start=MAP) as running:
        yield running


@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, len(TEXT) - 1), max_size=6))
def test_answers_are_those_from_zeros(caller: Caller, cuts: set[int]) -> None:
    found: list[float] = []
    with caller.session() as lease:
        for begin, end in itertools.pairwise([0, *sorted(cuts), len(TEXT)]):
            found += logprobs(caller.result(caller.score(TEXT[begin:end], lease=lease)))
    assert found == pytest.approx(reference(MODEL, TEXT), abs=NEAR)


def test_batch_mates_change_nothing(caller: Caller) -> None:
    texts = [TEXT[i : i + 9] for i in range(7)]
    jobs = [caller.score(text) for text in texts]
    for text, job in zip(texts, jobs, strict=True):
        assert logprobs(caller.result(job)) == pytest.approx(reference(MODEL, text), abs=NEAR)


def test_seeds_reproduce(caller: Caller) -> None:
    sampling = Sampling(temperature=1.2, seed=11)
    alone = drawn_ids(caller.events(caller.generate(TEXT[:3], 20, sampling=sampling)))
    mates = [caller.score(TEXT) for _ in range(3)]
    beside = drawn_ids(caller.events(caller.generate(TEXT[:3], 20, sampling=sampling)))
    for mate in mates:
        caller.result(mate)
    with running_engine(MODEL) as cold:
        from_zeros = drawn_ids(cold.events(cold.generate(TEXT[:3], 20, sampling=sampling)))
    assert alone == beside == from_zeros


@pytest.mark.parametrize("window", [1, 5])
def test_a_fitted_map_saves_calls(window: int) -> None:
    limits = EngineLimits(max_batch_tokens=8, max_running=1, window=window)
    calls = []
    for warm_start in (None, MAP):
        with running_engine(MODEL, limits, warm_start=warm_start) as caller:
            event = caller.result(caller.score(TEXT, solve=Solve(tol=1e-3, max_nfe=100)))
        assert isinstance(event, Scored)
        calls.append(event.stats.token_evaluations)
    assert calls[1] < 0.9 * calls[0]


def test_any_map_is_safe() -> None:
    """Also one whose states are no numbers: those begin at zeros."""
    broken = WarmStart(
        from_injection=torch.full((DIM, 3 * DIM), torch.nan),
        from_previous=torch.zeros(DIM, DIM),
        bias=torch.zeros(DIM),
    )
    with running_engine(MODEL, warm_start=broken) as caller:
        found = logprobs(caller.result(caller.score(TEXT)))
    assert found == pytest.approx(reference(MODEL, TEXT), abs=NEAR)


class Counting(Unobserved):
    def __init__(self) -> None:
        self.warm = 0

    def started_warm(self, tokens: int) -> None:
        self.warm += tokens


@pytest.mark.parametrize(("warm_start", "expected"), [(MAP, 5), (None, 0)], ids=["warm", "zeros"])
def test_tokens_started_warm_are_counted(warm_start: WarmStart | None, expected: int) -> None:
    with running_engine(MODEL, warm_start=warm_start) as caller:
        caller.engine._runner.observer = seen = Counting()
        caller.result(caller.score((1, 2, 3, 4, 5)))  # after <eos>; nothing follows the last
    assert seen.warm == expected


class TestFirstStates:
    """What a token that enters starts from, by a map that tells."""

    def make(self) -> tuple[Batch, Scheduler, Slab]:
        device = torch.device("cpu")
        slab = Slab(MODEL.config, rows=2, slots=0, window=4, device=device, dtype=torch.float64)
        warm_start = COPY.to(torch.device("cpu"), torch.float64)
        weights = MODEL.f.fold().detach()
        batch = Batch(MODEL, weights, slab, max_rows=8, form="float64", warm_start=warm_start)
        return batch, Scheduler(max_batch_tokens=8, max_running=2, window=4), slab

    def states(self, batch: Batch, sequence: Sequence) -> torch.Tensor:
        return batch._solver.propose(torch.tensor(list(sequence.rows)))

    def test_tokens_that_enter_together_follow_one_another(self) -> None:
        batch, scheduler, _ = self.make()
        one = Sequence(slot=0, start=0, inputs=[1, 2, 3])
        two = Sequence(slot=1, start=0, inputs=[4, 5])
        scheduler.add(one)
        scheduler.add(two)
        batch.enter(scheduler.enter())
        # Nothing is before the first: 2 · 0 + 1; then 2 · 1 + 1, and 2 · 3 + 1.
        assert self.states(batch, one)[:, 0].tolist() == [1.0, 3.0, 7.0]
        assert self.states(batch, two)[:, 0].tolist() == [1.0, 3.0]

    def test_an_accepted_token_and_one_that_moves_are_followed(self) -> None:
        batch, scheduler, slab = self.make()
        sequence = Sequence(slot=0, start=0, inputs=[1])
        scheduler.add(sequence)
        options = {sequence: Solve(tol=1e-6, max_nfe=100)}
        while not sequence.done:
            batch.enter(scheduler.enter())
            batch.step(scheduler, options)
        sequence.inputs.append(2)
        batch.enter(scheduler.enter())
        last, _ = slab.last(0)
        torch.testing.assert_close(self.states(batch, sequence)[0], 2 * last + 1)
        batch.step(scheduler, options)
        moving = self.states(batch, sequence)[0]
        sequence.inputs.append(3)
        batch.enter(scheduler.enter())
        torch.testing.assert_close(self.states(batch, sequence)[1], 2 * moving + 1)


def test_a_generation_begins_every_token_warm() -> None:
    limits = EngineLimits(max_running=4, guess_ahead=0)
    with running_engine(MODEL, limits, warm_start=MAP) as caller:
        caller.engine._runner.observer = seen = Counting()
        stop = Stop(max_tokens=6, eos_id=None)
        caller.result(caller.generate((1, 2), 6, stop=stop))
    assert seen.warm == 3 + 5  # <eos> and the prompt, and all drawn tokens but the last
