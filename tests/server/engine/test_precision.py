"""Early calls in 8 bits: when they are made, and that the accurate f decides all the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.block import BlockFunction
from deq_model.feed_forward import Int8FeedForward, has_int8
from deq_model.model import DEQLanguageModel
from server.engine.batch import Accepted, Batch
from server.engine.costs import CostCurve
from server.engine.layout import Layout
from server.engine.ledger import Ledger
from server.engine.limits import EngineLimits
from server.engine.precision import SWITCH, Costs, rough_rows, switch_residual
from server.engine.requests import Sampling
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve
from tests.server.engine.helpers import drawn_ids, logprobs, running_engine, small_model

needs_int8 = pytest.mark.skipif(not has_int8("cpu"), reason="this CPU has no 8-bit products")
CHEAP = Costs(
    accurate=CostCurve.measured([(1, 1.0), (2, 2.0)]), rough=CostCurve.measured([(1, 1e-6)])
)
TOKENS = (3, 1, 30, 12, 39, 5, 5, 20, 33, 2, 8, 17)


def wide_model(seed: int) -> DEQLanguageModel:
    """Wide enough for the roundings of 8 bits to average out."""
    return small_model(seed=seed, d_model=32, n_head=4, d_head=8, d_inner=256).float().eval()


@given(st.lists(st.booleans(), max_size=9), st.floats(0.1, 3), st.floats(0.1, 3))
def test_rows_are_rough_only_where_that_is_the_quicker(
    wishes: list[bool], rough_s: float, base_s: float
) -> None:
    costs = Costs(
        accurate=CostCurve.measured([(1, base_s + 1), (2, base_s + 2), (9, base_s + 9)]),
        rough=CostCurve.measured([(1, rough_s), (9, rough_s)]),
    )
    chosen = rough_rows(wishes, costs)
    wished = [i for i, wish in enumerate(wishes) if wish]
    assert chosen in ([], wished)
    others = len(wishes) - len(wished)
    mixed = costs.rough.seconds(len(wished)) + costs.accurate.seconds(others)
    assert (chosen == wished) == (not wished or mixed < costs.accurate.seconds(len(wishes)))


def test_a_row_turns_accurate_well_above_its_tolerance() -> None:
    assert switch_residual(1e-4) == SWITCH
    assert switch_residual(0.05) == 0.1


class Counted(Int8FeedForward):
    """Tells how often it was called."""

    calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().__call__(x)


def solved(model: DEQLanguageModel, *, rough: bool, solve: Solve) -> tuple[list[Accepted], int]:
    """Accepted tokens of ``TOKENS``, and how often the rough feed-forward was called."""
    slab = Slab(
        model.config, rows=1, slots=0, window=4, device=torch.device("cpu"), dtype=torch.float32
    )
    with torch.inference_mode():
        weights = model.f.fold().detach()
        batch = Batch(model, weights, slab, max_rows=8, form="float32", rough=rough)
        counted = Counted(weights) if rough else None
        if counted is not None:
            batch._rough, batch._costs = counted, CHEAP
        scheduler = Scheduler(max_batch_tokens=8, max_running=1, window=4)
        sequence = Sequence(slot=0, start=0, inputs=list(TOKENS))
        scheduler.add(sequence)
        accepted: list[Accepted] = []
        while not sequence.done:
            batch.enter(scheduler.enter())
            accepted += batch.step(scheduler, {sequence: solve})
    return accepted, 0 if counted is None else counted.calls


@needs_int8
@pytest.mark.parametrize("seed", range(4))
def test_rough_calls_lead_to_the_accurate_fixed_point(seed: int) -> None:
    model, solve = wide_model(seed), Solve(tol=1e-6, max_nfe=200)
    ours, calls = solved(model, rough=True, solve=solve)
    theirs, _ = solved(model, rough=False, solve=solve)
    assert calls > len(TOKENS) // 2, "the rough f was hardly asked: the test shows nothing"
    for a, b in zip(ours, theirs, strict=True):
        assert a.solved.status == b.solved.status == "converged"
        # What both may be off by, and the rough f would be off by a hundred times as much.
        assert float((a.z_star - b.z_star).norm() / b.z_star.norm()) < 1e-3


@needs_int8
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_what_is_reported_at_the_budget_is_of_the_accurate_f(budget: int) -> None:
    model = wide_model(1)
    accepted, _ = solved(model, rough=True, solve=Solve(tol=1e-9, max_nfe=budget))
    with torch.inference_mode():
        tokens = torch.tensor([TOKENS[:4]])
        f = BlockFunction(model.f.fold(), model.empty_memory(1), model.inject(tokens))
        z = torch.stack([token.z_star for token in accepted[:4]])
        f_z = f(z[None])[0]
    first = float((f_z[0] - z[0]).norm() / f_z[0].norm())
    assert accepted[0].solved.nfe == budget
    assert accepted[0].solved.residual == pytest.approx(first, rel=1e-3)


@needs_int8
def test_an_engine_that_has_measured_its_calls_answers_the_same() -> None:
    model, limits = wide_model(2), EngineLimits(max_batch_tokens=64, max_running=4, window=8)
    answers = []
    for early in (False, True):
        with running_engine(
            model, limits, dtype=torch.float32, early_int8=early, measured=early
        ) as caller:
            score = caller.score(TOKENS, solve=Solve(tol=1e-5, max_nfe=200))
            found = logprobs(caller.result(score))
            job = caller.generate((1, 2), 8, sampling=Sampling(seed=5))
            answers.append((found, drawn_ids(caller.events(job))))
    assert answers[0][0] == pytest.approx(answers[1][0], abs=1e-3)
    assert answers[0][1] == answers[1][1]


def test_measured_costs_cover_whole_calls_and_leave_no_trace() -> None:
    model = small_model(seed=3).eval()
    limits = EngineLimits(max_batch_tokens=24, max_running=4, window=5)
    with running_engine(model, limits, measured=True) as caller:
        costs = caller.engine._scheduler.costs
        assert costs is not None
        assert costs.rows[0] == 1
        assert costs.rows[-1] == 20, "four windows of five rows"
        assert all(0 < seconds < 60 for seconds in costs.times)
        measured = logprobs(caller.result(caller.score(TOKENS)))
    with running_engine(model, limits) as caller:
        plain = logprobs(caller.result(caller.score(TOKENS)))
    assert measured == pytest.approx(plain, abs=1e-5)


def test_rows_learn_anew_when_their_turn_comes() -> None:
    """And only once; a row that had its calls in its turn keeps what it knows."""
    sequence = Sequence(slot=0, start=0, inputs=[1, 2, 3])
    scheduler = Scheduler(max_batch_tokens=3, max_running=1, window=3)
    scheduler.add(sequence)
    ledger = Ledger(3)
    for entry in scheduler.enter():
        ledger.begin(entry.row)
    layout, rows = Layout.of([sequence]), list(sequence.rows)
    assert sequence.ready == 1
    assert ledger.relearning(layout) == []  # the second and the third are called early
    sequence.ready = 2
    assert ledger.relearning(layout) == [rows[1]]
    assert ledger.relearning(layout) == []
    sequence.ready = 4
    assert ledger.relearning(layout) == [rows[2]]
