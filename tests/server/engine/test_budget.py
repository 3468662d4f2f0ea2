"""Jobs that may take so much and no more, and tolerances that loosen while others wait."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.limits import EngineLimits
from server.engine.requests import Sampling, Stop
from server.engine.results import Drawn, Generated, PromptSolved, Scored
from server.engine.solve import Solve
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    TEXT,
    TIGHT,
    Caller,
    drawn_ids,
    generated,
    logprobs,
    reference,
    running_engine,
)

EXPECTED = reference(MODEL, TEXT)
ENDLESS = Solve(tol=1e-30, max_nfe=100_000)
GREEDY = Sampling(temperature=0)


@settings(max_examples=20, deadline=None)
@given(calls=st.integers(1, 90), own=st.booleans(), error=st.booleans())
def test_a_score_takes_no_more_calls_than_it_may(
    caller: Caller, calls: int, own: bool, error: bool
) -> None:
    solve = replace(TIGHT, policy="error" if error else "best_effort")
    with caller.session() as lease:
        held = lease if own else None
        event = caller.scored(caller.score(TEXT, lease=held, max_calls=calls, solve=solve))
        assert event.stats.nfe_total <= calls
        assert [token.token_id for token in event.tokens] == list(TEXT[: len(event.tokens)])
        exact = [token for token in event.tokens if token.solved.status == "converged"]
        assert event.tokens[: len(exact)] == tuple(exact), "what is accepted early comes last"
        assert logprobs(event)[: len(exact)] == pytest.approx(EXPECTED[: len(exact)], abs=NEAR)
        if error:
            assert len(exact) == len(event.tokens)
        is_whole = len(exact) == len(TEXT) and event.stats.status == "converged"
        assert event.stopped == (None if is_whole else "calls")
        assert event.position == len(event.tokens)
        if held is not None:
            view = caller.engine.sessions.view(lease)
            assert view is not None
            assert view.position == view.totals.scored_tokens == event.position
            assert view.totals.logprob_sum == pytest.approx(sum(logprobs(event)))
            assert view.last_token == (TEXT[event.position - 1] if event.position else None)
            rest = caller.scored(caller.score(TEXT[event.position :], lease=lease))
            assert (rest.position, len(rest.tokens)) == (29, 29 - event.position)


def test_one_call_of_a_score_accepts_its_whole_window(caller: Caller) -> None:
    event = caller.scored(caller.score(TEXT, max_calls=1))
    # A window of 5: <eos> and four tokens; the last of them predicts a fifth.
    assert (event.stats.nfe_total, event.stats.solved_tokens, len(event.tokens)) == (1, 5, 5)
    assert event.stats.status == "max_nfe"
    assert all(token.solved.nfe == 1 and token.solved.residual > 0.1 for token in event.tokens)


def test_a_session_that_was_cut_short_goes_on_from_exact_states(caller: Caller) -> None:
    strict = replace(TIGHT, policy="error")
    found: list[float] = []
    with caller.session() as lease:
        while len(found) < len(TEXT):
            job = caller.score(TEXT[len(found) :], lease=lease, max_calls=25, solve=strict)
            event = caller.scored(job)
            found += logprobs(event)
            assert event.position == len(found)
    assert found == pytest.approx(EXPECTED, abs=NEAR)


def test_time_that_is_over_before_the_start_gives_an_empty_answer(caller: Caller) -> None:
    past = time.monotonic() - 1
    with caller.session() as lease:
        caller.result(caller.score(TEXT[:3], lease=lease))
        before = caller.engine.sessions.view(lease)
        event = caller.scored(caller.score(TEXT, lease=lease, answer_by=past))
        assert (event.tokens, event.stopped, event.stats.nfe_total) == ((), "time", 0)
        assert event.position == 3
        events = caller.events(caller.generate(TEXT, 5, lease=lease, answer_by=past))
        assert [type(event) for event in events] == [PromptSolved, Generated]
        assert generated(events[-1]).reason == "time"
        assert generated(events[-1]).position == 3
        after = caller.engine.sessions.view(lease)
        assert before is not None
        assert after is not None
        assert (before.position, before.totals) == (after.position, after.totals)
    alone = caller.scored(caller.score((), candidates=((1,), (2,)), answer_by=past))
    assert (alone.candidates, alone.cut) == (((), ()), {0, 1})


def test_time_ends_what_would_never_end(caller: Caller) -> None:
    begun = time.monotonic()
    with caller.session() as lease:
        job = caller.score(TEXT, lease=lease, solve=ENDLESS, answer_by=begun + 0.2)
        event = caller.scored(job)
        assert time.monotonic() - begun < 10
        assert event.stopped == "time"
        assert 1 <= event.position == len(event.tokens) <= 5
        assert event.stats.max_nfe_tokens >= 1, "some residuals are zero, hardly all"
        stop = Stop(max_tokens=1_000_000, eos_id=None)
        until = time.monotonic() + 0.3
        events = caller.events(caller.generate((), 1, stop=stop, lease=lease, answer_by=until))
        final = generated(events[-1])
        assert final.reason == "time"
        assert len(drawn_ids(events)) == final.totals.scored_tokens > 1
        assert final.session is not None
        assert final.position == final.session.position == event.position + len(drawn_ids(events))
        assert final.session.last_token == drawn_ids(events)[-1]


def test_a_job_that_waits_is_answered_in_time() -> None:
    with running_engine(MODEL, EngineLimits(max_batch_tokens=4, max_running=1)) as caller:
        stop = Stop(max_tokens=1_000_000, eos_id=None)
        busy = caller.generate((), 1, stop=stop)
        caller.open[busy].get(timeout=60)
        event = caller.scored(caller.score(TEXT, answer_by=time.monotonic() + 0.1))
        assert (event.tokens, event.stopped) == ((), "time")
        assert event.times.queue_s > 0.09
        caller.engine.cancel(busy)
        caller.result(busy)


@settings(max_examples=20, deadline=None)
@given(calls=st.integers(1, 120), own=st.booleans())
def test_a_generation_takes_no_more_calls_than_it_may(
    caller: Caller, calls: int, own: bool
) -> None:
    stop = Stop(max_tokens=8, eos_id=None)
    with caller.session() as lease:
        held = lease if own else None
        events = caller.events(
            caller.generate(TEXT[:9], 8, sampling=GREEDY, stop=stop, lease=held, max_calls=calls)
        )
        first, *drawn, final = events
        assert isinstance(first, PromptSolved)
        assert all(isinstance(event, Drawn) for event in drawn)
        final = generated(final)
        assert final.stats.nfe_total <= calls
        assert final.reason == ("length" if len(drawn) == 8 else "calls")
        read = first.totals.scored_tokens
        assert read == 9 or not drawn
        assert final.position == read + len(drawn)
        if held is not None:
            view = caller.engine.sessions.view(lease)
            assert view is not None
            assert view.position == view.totals.scored_tokens == final.position


def test_candidates_that_are_done_are_whole(caller: Caller) -> None:
    candidates = ((1, 2), TEXT, (3,), *(((4,) * 20,) * 8))
    whole = caller.scored(caller.score((), candidates=((1, 2),)))
    calls = whole.stats.nfe_total + 2
    with caller.session() as lease:
        job = caller.score((), candidates=candidates, max_calls=calls, lease=lease)
        event = caller.scored(job)
    assert event.stopped == "calls"
    assert event.stats.nfe_total <= calls
    assert 0 not in event.cut
    assert [t.logprob for t in event.candidates[0]] == pytest.approx(
        reference(MODEL, (1, 2)), abs=NEAR
    )
    assert 1 in event.cut
    assert 0 < len(event.candidates[1]) < len(TEXT)
    assert event.candidates[-1] == ()
    assert len(event.candidates) == len(candidates)


def test_a_prefix_that_is_cut_leaves_no_time_for_candidates(caller: Caller) -> None:
    event = caller.scored(caller.score(TEXT, candidates=((1,), (2,)), max_calls=3))
    assert event.stopped == "calls"
    assert (event.candidates, event.cut) == (((), ()), {0, 1})
    assert 0 < len(event.tokens) < len(TEXT)


class TestOverload:
    LIMITS = EngineLimits(
        max_batch_tokens=4, max_running=1, window=4, overload_tol=0.1, overload_queue=1
    )

    def results(self, caller: Caller, *solves: Solve, **options: object) -> list[Scored]:
        """Scores the text with each of these, all of which wait together at first."""
        with caller.held():
            jobs = [caller.score(TEXT, solve=solve, **options) for solve in solves]
        return [caller.scored(job) for job in jobs]

    def test_tokens_are_loosened_while_enough_jobs_wait(self) -> None:
        with running_engine(MODEL, self.LIMITS) as caller:
            first, *_, last = self.results(caller, *[TIGHT] * 4)
            assert not caller.engine.snapshot().loosening
        assert first.stats.loosened_tokens == len(TEXT) == first.stats.unconverged_tokens
        assert (first.stats.applied_tol, first.stats.status) == (0.1, "loosened")
        assert all(token.solved.status == "loosened" for token in first.tokens)
        assert all(1e-7 < token.solved.residual <= 0.1 for token in first.tokens)
        assert logprobs(first) != pytest.approx(EXPECTED, abs=NEAR)
        assert first.stats.token_evaluations < last.stats.token_evaluations
        assert (last.stats.loosened_tokens, last.stats.applied_tol) == (0, TIGHT.tol)
        assert logprobs(last) == pytest.approx(EXPECTED, abs=NEAR)

    def test_who_asks_for_it_is_never_loosened(self) -> None:
        kept = (replace(TIGHT, keep_tol=True), replace(TIGHT, policy="error"))
        with running_engine(MODEL, self.LIMITS) as caller:
            loose = replace(TIGHT, tol=0.5)
            for event in self.results(caller, *kept, TIGHT, TIGHT)[:2]:
                assert event.stats.status == "converged"
                assert event.stats.applied_tol == TIGHT.tol
            # A tolerance that is looser already stays as it is.
            assert self.results(caller, loose, TIGHT, TIGHT)[0].stats.applied_tol == 0.5

    def test_off_by_default(self) -> None:
        limits = EngineLimits(max_batch_tokens=4, max_running=1, window=4, overload_queue=0)
        with running_engine(MODEL, limits) as caller:
            for event in self.results(caller, *[TIGHT] * 3):
                assert event.stats.status == "converged"

    def test_a_session_remembers_how_its_last_token_was_solved(self) -> None:
        with running_engine(MODEL, self.LIMITS) as caller, caller.session() as lease:
            with caller.held():
                jobs = [caller.score(TEXT, lease=lease), *(caller.score((1,)) for _ in range(3))]
            for job in jobs:
                caller.result(job)
            event = caller.scored(caller.score((3, 4), lease=lease))
        assert [token.solved.status for token in event.tokens] == ["loosened", "converged"]
