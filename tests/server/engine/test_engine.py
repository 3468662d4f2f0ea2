"""The engine on a small model: what it answers, to whom, and what it leaves behind."""

import itertools
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.solvers.options import SolverOptions
from server.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    NotConverged,
    QueueFull,
    SessionBusy,
)
from server.engine.limits import EngineLimits
from server.engine.results import Event, Failed, PromptSolved, Scored
from server.engine.solve import Solve
from tests.deq_model.golden import load_golden
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    TEXT,
    TIGHT,
    Caller,
    logprobs,
    reference,
    running_engine,
    small_model,
)


def error_of(event: Event) -> EngineError:
    assert isinstance(event, Failed), event
    return event.error


@pytest.mark.parametrize("name", ["post_ln", "flat_vocab"])
def test_golden_likelihoods(name: str) -> None:
    golden = load_golden(name)
    tokens = tuple(golden.arrays["tokens"][0].tolist())
    plain = SolverOptions(method="picard", tol=1e-9, max_nfe=2000)  # see test_golden.py
    with running_engine(golden.model) as caller:
        scored = caller.result(caller.score(tokens))
    torch.testing.assert_close(
        torch.tensor(logprobs(scored)),
        torch.tensor(reference(golden.model, tokens, plain)),
        rtol=0,
        atol=NEAR,
    )


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, len(TEXT) - 1), max_size=10))
def test_cutting_a_text_into_calls_changes_nothing(caller: Caller, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    found: list[float] = []
    with caller.session() as lease:
        for begin, end in itertools.pairwise(edges):
            event = caller.scored(caller.score(TEXT[begin:end], lease=lease))
            assert event.position == end
            assert event.session is not None
            assert event.session.totals.scored_tokens == end
            assert event.session.last_token == TEXT[end - 1]
            found += logprobs(event)
    assert found == pytest.approx(reference(MODEL, TEXT), abs=NEAR)


@pytest.mark.parametrize("changes", [{"local_size": 3}, {"mem_len": 0}, {"cutoffs": ()}])
def test_variants_of_the_model(changes: dict[str, object]) -> None:
    model = small_model(seed=2, **changes).eval()
    with running_engine(model) as caller:
        found = logprobs(caller.result(caller.score(TEXT)))
    assert found == pytest.approx(reference(model, TEXT), abs=NEAR)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_batch_mates_change_nothing(caller: Caller, data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=12), min_size=2, max_size=7)
    )
    jobs = [caller.score(tuple(text)) for text in texts]
    for text, job in zip(texts, jobs, strict=True):
        expected = reference(MODEL, tuple(text))
        assert logprobs(caller.result(job)) == pytest.approx(expected, abs=NEAR)


def test_candidates_are_scored_after_the_session_and_change_nothing(caller: Caller) -> None:
    candidates = ((1, 2, 3), (30,), (1, 2, 39), *((i,) for i in range(9)))
    prefix, common = TEXT[:8], (5, 6)
    with caller.session() as lease:
        caller.result(caller.score(prefix, lease=lease))
        before = caller.engine.sessions.view(lease)
        for own in ((), common):
            event = caller.scored(caller.score(own, lease=lease, candidates=candidates))
            assert event.position == len(prefix)
            for candidate, tokens in zip(candidates, event.candidates, strict=True):
                whole = reference(MODEL, (*prefix, *own, *candidate))
                found = [token.logprob for token in tokens]
                assert found == pytest.approx(whole[len(prefix) + len(own) :], abs=NEAR)
        after = caller.engine.sessions.view(lease)
        assert before is not None
        assert after is not None
        assert (before.position, before.totals) == (after.position, after.totals)


def test_candidates_without_a_session(caller: Caller) -> None:
    event = caller.scored(caller.score((), candidates=((7, 8), (9,))))
    assert [t.logprob for t in event.candidates[0]] == pytest.approx(
        reference(MODEL, (7, 8)), abs=NEAR
    )
    assert [t.logprob for t in event.candidates[1]] == pytest.approx(
        reference(MODEL, (9,)), abs=NEAR
    )


def test_alternatives_are_the_likeliest_words(caller: Caller) -> None:
    event = caller.scored(caller.score(TEXT, top_k=40))
    for token in event.tokens:
        assert len(token.alternatives) == 40
        values = [value for _, value in token.alternatives]
        assert values == sorted(values, reverse=True)
        assert dict(token.alternatives)[token.token_id] == pytest.approx(token.logprob, abs=1e-9)


def test_figures_of_the_solver_add_up(caller: Caller) -> None:
    event = caller.scored(caller.score(TEXT))
    stats = event.stats
    assert stats.solved_tokens == len(TEXT)  # <eos> is one more, the last token one less
    assert stats.token_evaluations >= 2 * stats.solved_tokens
    assert stats.nfe_total <= stats.token_evaluations <= 5 * stats.nfe_total  # window of 5
    assert 0 < stats.residual_max <= TIGHT.tol
    residuals = sum(token.solved.residual for token in event.tokens)
    assert stats.residual_sum == pytest.approx(residuals)
    assert event.times.queue_s > 0
    assert stats.status == "converged"
    assert all(token.solved.residual <= TIGHT.tol for token in event.tokens)


def test_budget_is_kept_and_reported(caller: Caller) -> None:
    event = caller.scored(caller.score(TEXT, solve=Solve(tol=1e-12, max_nfe=3)))
    assert event.stats.max_nfe_tokens == len(TEXT)
    assert event.stats.status == "max_nfe"
    assert all(token.solved.nfe <= 3 for token in event.tokens)
    assert all(token.solved.status == "max_nfe" for token in event.tokens)
    one = caller.scored(caller.score(TEXT, solve=Solve(tol=1e-12, max_nfe=1)))
    assert one.stats.token_evaluations == len(TEXT)


def test_what_nothing_follows_is_not_solved(caller: Caller) -> None:
    with caller.session() as lease:
        caller.result(caller.score(TEXT[:5], lease=lease))
        candidates = tuple((i,) for i in range(9))
        event = caller.scored(caller.score((), candidates=candidates, lease=lease))
        assert (event.stats.solved_tokens, event.stats.nfe_total) == (0, 0)
        for candidate, tokens in zip(candidates, event.candidates, strict=True):
            expected = reference(MODEL, (*TEXT[:5], *candidate))[-1:]
            assert [token.logprob for token in tokens] == pytest.approx(expected, abs=NEAR)
        strict = Solve(tol=1e-12, max_nfe=1, policy="error")
        assert isinstance(caller.result(caller.score((), candidates=((1,), (2,)))), Scored)
        event = caller.scored(caller.score((), candidates=((1,),), lease=lease, solve=strict))


def test_error_policy_leaves_the_session_as_it_was(caller: Caller) -> None:
    with caller.session() as lease:
        caller.result(caller.score(TEXT[:9], lease=lease))
        strict = Solve(tol=1e-12, max_nfe=2, policy="error")
        error = error_of(caller.result(caller.score(TEXT[9:], lease=lease, solve=strict)))
        assert isinstance(error, NotConverged)
        assert "after 2 calls of f; tol is 1e-12, max_nfe 2" in str(error)
        view = caller.engine.sessions.view(lease)
        assert view is not None
        assert view.position == 9
        event = caller.result(caller.score(TEXT[9:], lease=lease))
        assert logprobs(event) == pytest.approx(reference(MODEL, TEXT)[9:], abs=NEAR)


def test_nonfinite_states_stay_with_their_request() -> None:
    model = small_model(seed=4, tie_weights=False).eval()
    with torch.no_grad():  # one word whose injection overflows everything
        model.embedding.tables[0][7].fill_(1e300)
    with running_engine(model) as caller:
        solve = Solve(tol=1e-7, max_nfe=60)
        bad = caller.score((1, 7, 2), solve=solve)
        good = [caller.score((3, 4, i), solve=solve) for i in range(3)]
        event = caller.scored(bad)
        assert event.stats.status == "nonfinite"
        assert event.stats.nonfinite_tokens >= 1
        for i, job in enumerate(good):
            expected = reference(model, (3, 4, i))
            assert logprobs(caller.result(job)) == pytest.approx(expected, abs=NEAR)


def test_a_late_job_ends_at_its_deadline(caller: Caller) -> None:
    with caller.session() as lease:
        job = caller.generate((), 100_000, lease=lease, deadline=time.monotonic() + 0.2)
        assert isinstance(error_of(caller.result(job)), DeadlineExceeded)
        past = caller.score(TEXT, lease=lease, deadline=time.monotonic() - 1)
        assert isinstance(error_of(caller.result(past)), DeadlineExceeded)
        view = caller.engine.sessions.view(lease)
        assert view is not None
        assert view.position == 0


def test_a_cancelled_job_ends_once_and_leaves_nothing(caller: Caller) -> None:
    with caller.session() as lease:
        job = caller.generate((), 100_000, lease=lease)
        first = caller.open[job].get(timeout=30)
        assert isinstance(first, PromptSolved)
        caller.engine.cancel(job)
        caller.engine.cancel(job)
        assert isinstance(error_of(caller.result(job)), Cancelled)
        with pytest.raises(SessionBusy):
            caller.engine.sessions.acquire(lease.session_id, "")
        view = caller.engine.sessions.view(lease)
        assert view is not None
        assert view.position == 0
    caller.engine.cancel("never heard of")


def test_a_lease_given_back_early_commits_nothing(caller: Caller) -> None:
    view = caller.engine.sessions.create(owner="", ttl_s=60, solve=Solve())
    lease = caller.engine.sessions.acquire(view.session_id, "")
    job = caller.score(TEXT, lease=lease)
    caller.engine.sessions.release(lease)
    assert isinstance(error_of(caller.result(job)), Cancelled)
    assert caller.engine.sessions.get(view.session_id, "").position == 0
    caller.engine.sessions.delete(view.session_id, "")


def test_the_queue_is_bounded_and_everything_accepted_ends() -> None:
    limits = EngineLimits(
        max_batch_tokens=4, max_running=1, window=2, max_queue=3, max_queue_tokens=40
    )
    with running_engine(MODEL, limits) as caller:
        running = caller.generate((), 100_000)
        assert isinstance(caller.open[running].get(timeout=30), PromptSolved)
        waiting = [caller.score((1,)) for _ in range(3)]
        with pytest.raises(QueueFull, match="waiting requests must be at most 3") as full:
            caller.score((1,))
        assert full.value.retry_after_s > 0
        caller.engine.cancel(waiting[0])
        assert isinstance(error_of(caller.result(waiting[0])), Cancelled)
        with pytest.raises(QueueFull, match="waiting tokens must be at most 40, got 2 and 39"):
            caller.score((1,) * 39)
        with pytest.raises(QueueFull, match="got 2 and 39"):
            caller.generate((1,), 38)
        caller.engine.cancel(running)
        caller.result(running)
        assert all(isinstance(caller.result(job), Scored) for job in waiting[1:])
        assert caller.engine.snapshot().waiting_tokens == 0


def test_stop_lets_running_jobs_finish() -> None:
    with running_engine(MODEL) as caller:
        job = caller.score(TEXT)
        caller.engine.stop(grace_s=30)
        assert isinstance(caller.result(job), Scored)
        with pytest.raises(EngineStopped, match="it is not running"):
            caller.score(TEXT)


def test_stop_ends_what_outlasts_the_grace() -> None:
    with running_engine(MODEL) as caller:
        job = caller.generate((), 100_000)
        caller.engine.stop(grace_s=0.05)
        assert isinstance(error_of(caller.result(job)), EngineStopped)
        assert not caller.engine.alive


def test_many_threads_on_one_engine(caller: Caller) -> None:
    found: dict[int, list[float]] = {}

    def work(index: int) -> None:
        with caller.session(owner=str(index)) as lease:
            for token in TEXT[:6]:
                event = caller.result(caller.score((token,), lease=lease))
                found.setdefault(index, []).extend(logprobs(event))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = pytest.approx(reference(MODEL, TEXT[:6]), abs=NEAR)
    assert [found[i] for i in range(6)] == [expected] * 6


def test_float32_and_bfloat16_stay_close() -> None:
    model = small_model(seed=6).float().eval()
    expected = reference(small_model(seed=6).eval(), TEXT)
    for dtype, tol, error in ((torch.float32, 1e-5, 1e-3), (torch.bfloat16, 2e-2, 0.3)):
        with running_engine(model, dtype=dtype) as caller:
            event = caller.result(caller.score(TEXT, solve=Solve(tol=tol, max_nfe=100)))
        assert logprobs(event) == pytest.approx(expected, abs=error)
