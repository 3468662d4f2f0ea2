"""Differences in 8 bits: when rows are exact, and that the exact f decides all the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.block import BlockFunction
from deq_model.int8_feed_forward import Int8FeedForward
from deq_model.model import DEQLanguageModel
from server.engine import batch as batch_module
from server.engine.batch import Accepted, Batch
from server.engine.layout import Layout
from server.engine.ledger import Ledger
from server.engine.limits import EngineLimits
from server.engine.precision import is_exact_enough, wants_exact
from server.engine.requests import Sampling
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve
from tests.kernels import needs_int8
from tests.server.engine.helpers import drawn_ids, logprobs, running_engine, small_model

TOKENS = (3, 1, 30, 12, 39, 5, 5, 20, 33, 2, 8, 17)


def wide_model(seed: int) -> DEQLanguageModel:
    """Wide enough for the roundings of 8 bits to average out."""
    return small_model(seed=seed, d_model=32, n_head=4, d_head=8, d_inner=256).float().eval()


@given(error=st.floats(0, 1), residual=st.floats(1e-9, 2), tol=st.floats(1e-7, 0.1))
def test_a_row_that_need_not_be_exact_is_accepted_once_it_is_near(
    error: float, residual: float, tol: float
) -> None:
    """No row waits for ever: near its fixed point it is exact enough, or will be exact next."""
    if not wants_exact(error=error, residual=residual, tol=tol) and residual <= tol:
        assert is_exact_enough(error=error, tol=tol)
    assert is_exact_enough(error=0.0, tol=tol)
    assert not wants_exact(error=0.0, residual=residual, tol=tol)


class Counted(Int8FeedForward):
    """Counts exact rows and differences."""

    exact_rows = differences = 0

    def set_rows(self, anchors: torch.Tensor, exact: torch.Tensor) -> None:
        super().set_rows(anchors, exact)
        self.exact_rows += int(exact.sum())
        self.differences += int((~exact).sum())


def solved(
    model: DEQLanguageModel, *, early: bool, solve: Solve
) -> tuple[list[Accepted], Counted | None]:
    """Accepted tokens of ``TOKENS``, and the feed-forward of 8-bit differences."""
    slab = Slab(
        model.config, rows=1, slots=0, window=4, device=torch.device("cpu"), dtype=torch.float32
    )
    with torch.inference_mode():
        weights = model.f.fold().detach()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_module, "Int8FeedForward", Counted)
            batch = Batch(model, weights, slab, max_rows=8, form="float32", early_int8=early)
        scheduler = Scheduler(max_batch_tokens=8, max_running=1, window=4)
        sequence = Sequence(slot=0, start=0, inputs=list(TOKENS))
        scheduler.add(sequence)
        accepted: list[Accepted] = []
        while not sequence.done:
            batch.enter(scheduler.enter())
            accepted += batch.step(scheduler, {sequence: solve})
    return accepted, batch._int8


@needs_int8
@pytest.mark.parametrize(("tol", "near"), [(1e-6, 1e-3), (3e-3, 1e-2)])
@pytest.mark.parametrize("seed", range(4))
def test_differences_lead_to_the_exact_fixed_point(seed: int, tol: float, near: float) -> None:
    model = wide_model(seed)
    ours, counted = solved(model, early=True, solve=Solve(tol=tol, max_nfe=200))
    theirs, _ = solved(model, early=False, solve=Solve(tol=1e-6, max_nfe=200))
    assert counted is not None
    assert counted.differences > 2 * counted.exact_rows > 0, "the test shows little"
    for a, b in zip(ours, theirs, strict=True):
        assert a.solved.status == b.solved.status == "converged"
        assert float((a.z_star - b.z_star).norm() / b.z_star.norm()) < near


@needs_int8
def test_at_the_usual_tolerance_a_token_is_computed_exactly_about_once() -> None:
    _, counted = solved(wide_model(3), early=True, solve=Solve(tol=3e-3, max_nfe=200))
    assert counted is not None
    assert len(TOKENS) <= counted.exact_rows <= 1.5 * len(TOKENS)


@needs_int8
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_what_is_reported_at_the_budget_is_of_the_exact_f(budget: int) -> None:
    model = wide_model(1)
    accepted, _ = solved(model, early=True, solve=Solve(tol=1e-9, max_nfe=budget))
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
