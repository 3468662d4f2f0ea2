"""Texts that begin alike are solved once, and score as they would alone."""

import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import sharing
from server.engine.limits import EngineLimits
from server.engine.requests import Sampling, Stop
from server.engine.results import Failed, Generated
from server.engine.solve import Solve
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    TEXT,
    TIGHT,
    Caller,
    drawn_ids,
    logprobs,
    reference,
    running_engine,
)

OTHER = tuple((token + 1) % 40 for token in TEXT)
LIMITS = EngineLimits(max_batch_tokens=24, max_running=4, window=5, prefix_cache=200)


@pytest.fixture
def caller() -> Caller:
    with running_engine(MODEL, LIMITS) as running:
        yield running


def test_the_same_text_again_takes_no_call(caller: Caller) -> None:
    before = caller.engine.snapshot().prefix_tokens
    first = caller.scored(caller.score(TEXT, top_k=3))
    again = caller.scored(caller.score(TEXT, top_k=3))
    assert (first.stats.shared_tokens, first.stats.solved_tokens) == (0, 29)
    assert (again.stats.shared_tokens, again.stats.solved_tokens) == (29, 0)
    assert (again.stats.nfe_total, again.stats.token_evaluations) == (0, 0)
    assert logprobs(again) == pytest.approx(logprobs(first), abs=1e-12)
    assert [t.alternatives[0][0] for t in again.tokens] == [
        t.alternatives[0][0] for t in first.tokens
    ]
    assert [t.solved for t in again.tokens] == [t.solved for t in first.tokens]
    assert caller.engine.snapshot().prefix_tokens == before + 29


@pytest.fixture(scope="module")
def lasting() -> Caller:
    """An engine whose cache goes from example to example."""
    with running_engine(MODEL, LIMITS) as running:
        yield running


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_sharing_changes_no_logprob(lasting: Caller, data: st.DataObject) -> None:
    """Texts cut from two, joined anywhere, scored one after the other or together."""
    cuts = st.tuples(st.integers(0, 29), st.integers(0, 29))
    texts = [TEXT[:a] + OTHER[:b] for a, b in data.draw(st.lists(cuts, max_size=5)) if a + b]
    jobs = []
    for text in texts:
        jobs.append(lasting.score(text))
        if data.draw(st.booleans()):
            lasting.open[jobs[-1]].put(lasting.result(jobs[-1]))
    for text, job in zip(texts, jobs, strict=True):
        event = lasting.scored(job)
        assert logprobs(event) == pytest.approx(reference(MODEL, text), abs=NEAR)
        assert event.stats.shared_tokens + event.stats.solved_tokens == len(text)


def test_prompts_at_once_are_solved_once(caller: Caller) -> None:
    texts = [(*TEXT[:20], i, i) for i in range(4)]
    with caller.held(owner="gate"):
        jobs = [caller.score(text) for text in texts]
    events = [caller.scored(job) for job in jobs]
    for text, event in zip(texts, events, strict=True):
        assert logprobs(event) == pytest.approx(reference(MODEL, text), abs=NEAR)
    assert sorted(event.stats.shared_tokens for event in events) == [0, 21, 21, 21]
    assert sum(event.stats.solved_tokens for event in events) == 21 + 4


def test_generations_with_one_prompt(caller: Caller) -> None:
    stop = Stop(max_tokens=5, eos_id=None)
    with caller.held(owner="gate"):
        jobs = [
            caller.generate(TEXT, 5, sampling=Sampling(seed=seed), stop=stop) for seed in range(4)
        ]
    together = [caller.events(job) for job in jobs]
    finals = [events[-1] for events in together]
    assert all(isinstance(final, Generated) for final in finals)
    assert sorted(final.stats.shared_tokens for final in finals) == [0, 30, 30, 30]
    with running_engine(MODEL) as alone:
        for seed, events in enumerate(together):
            expected = alone.events(
                alone.generate(TEXT, 5, sampling=Sampling(seed=seed), stop=stop)
            )
            assert drawn_ids(events) == drawn_ids(expected)


def test_a_next_turn_finds_prompt_and_answer(caller: Caller) -> None:
    stop = Stop(max_tokens=6, eos_id=None)
    with caller.session() as lease:
        events = caller.events(caller.generate(TEXT, 6, stop=stop, lease=lease))
    turn = (*TEXT, *drawn_ids(events), 7, 8)
    event = caller.scored(caller.score(turn))
    assert event.stats.shared_tokens == 1 + len(TEXT) + 6
    assert logprobs(event) == pytest.approx(reference(MODEL, turn), abs=NEAR)


def test_a_session_may_begin_with_what_others_solved(caller: Caller) -> None:
    caller.result(caller.score(TEXT[:20]))
    found: list[float] = []
    with caller.session() as lease:
        for begin, end in ((0, 20), (20, 24), (24, 29)):
            event = caller.scored(caller.score(TEXT[begin:end], lease=lease))
            found += logprobs(event)
            assert event.position == end
        assert event.stats.shared_tokens == 0, "what a session goes on with is its own"
    assert found == pytest.approx(reference(MODEL, TEXT), abs=NEAR)


def test_candidates_share_among_themselves(caller: Caller) -> None:
    common = TEXT[:9]
    candidates = tuple((*common, i) for i in range(12))
    before = caller.engine.snapshot().prefix_tokens
    for own in ((), TEXT[20:]):
        with caller.session() as lease:
            caller.result(caller.score(OTHER[:8], lease=lease))
            job = caller.score(own, candidates=candidates, lease=lease)
            event = caller.scored(job)
            for candidate, tokens in zip(candidates, event.candidates, strict=True):
                whole = reference(MODEL, (*OTHER[:8], *own, *candidate))
                found = [token.logprob for token in tokens]
                assert found == pytest.approx(whole[8 + len(own) :], abs=NEAR)
        assert event.stats.shared_tokens == 11 * 9
        assert event.stats.solved_tokens == len(own) + 9
    kept = caller.engine.snapshot().prefix_tokens
    assert kept <= before + 9, "candidates are forgotten with their job"


def test_owners_do_not_learn_from_each_other(caller: Caller) -> None:
    caller.result(caller.score(TEXT, owner="ann"))
    assert caller.scored(caller.score(TEXT, owner="bob")).stats.shared_tokens == 0
    assert caller.scored(caller.score(TEXT, owner="ann")).stats.shared_tokens == 29


def test_a_looser_solution_is_not_used(caller: Caller) -> None:
    caller.result(caller.score(TEXT, solve=Solve(tol=0.1, max_nfe=100)))
    event = caller.scored(caller.score(TEXT))
    assert event.stats.shared_tokens == 0
    assert logprobs(event) == pytest.approx(reference(MODEL, TEXT), abs=NEAR)
    loose = caller.scored(caller.score(TEXT, solve=Solve(tol=0.01, max_nfe=100)))
    assert loose.stats.shared_tokens == 29, "a tighter one is"
    assert all(token.solved.status == "converged" for token in loose.tokens)


def test_the_cache_is_off_by_default() -> None:
    with running_engine(MODEL) as caller:
        jobs = [caller.score(TEXT) for _ in range(2)]
        for job in [*jobs, caller.score(TEXT)]:
            assert caller.scored(job).stats.shared_tokens == 0
        assert caller.engine.snapshot().prefix_tokens == 0


def test_long_texts_are_shared_as_far_as_there_is_room() -> None:
    limits = replace(LIMITS, prefix_cache=40)
    with running_engine(MODEL, limits) as caller:
        caller.result(caller.score(TEXT))
        event = caller.scored(caller.score(TEXT))
        assert event.stats.shared_tokens == 10
        assert logprobs(event) == pytest.approx(reference(MODEL, TEXT), abs=NEAR)
        for token in range(30):
            caller.result(caller.score((token,) * 12))
            assert caller.engine.snapshot().prefix_tokens <= 40


def test_large_prefixes_are_taken_over_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PORTION", 4)
    with running_engine(MODEL, LIMITS) as caller:
        caller.result(caller.score(TEXT))
        jobs = [caller.score((*TEXT, i)) for i in range(3)]
        for i, job in enumerate(jobs):
            event = caller.scored(job)
            assert event.stats.shared_tokens == 29
            assert logprobs(event) == pytest.approx(reference(MODEL, (*TEXT, i)), abs=NEAR)


class TestWaiting:
    """A leader that the test holds back: its tokens never converge."""

    STUCK = Solve(tol=1e-30, max_nfe=100_000)

    def stuck(self, caller: Caller, **options: object) -> str:
        job = caller.score(TEXT, solve=self.STUCK, **options)
        while caller.engine.snapshot().running_jobs < 1:
            threading.Event().wait(0.002)
        return job

    def test_nobody_waits_for_ever(self, caller: Caller) -> None:
        leader = self.stuck(caller)
        follower = caller.score(TEXT, solve=replace(self.STUCK, max_nfe=3))
        event = caller.scored(follower)
        assert event.stats.shared_tokens < 30
        assert len(event.tokens) == len(TEXT)
        caller.engine.cancel(leader)
        assert isinstance(caller.result(leader), Failed)

    def test_who_waits_may_be_cancelled_and_leaves_nothing(self, caller: Caller) -> None:
        leader = self.stuck(caller)
        for _ in range(3):
            follower = caller.score(TEXT, solve=self.STUCK)
            caller.engine.cancel(follower)
            assert isinstance(caller.result(follower), Failed)
        caller.engine.cancel(leader)
        caller.result(leader)

    def test_who_waits_is_answered_in_time(self, caller: Caller) -> None:
        leader = self.stuck(caller)
        until = time.monotonic() + 0.1
        event = caller.scored(caller.score(TEXT, solve=self.STUCK, answer_by=until))
        assert event.stopped == "time"
        caller.engine.cancel(leader)
        caller.result(leader)

    def test_a_leader_that_ends_leaves_what_it_has(self, caller: Caller) -> None:
        solve = replace(TIGHT, policy="error")
        with caller.held(owner="gate"):
            jobs = [caller.score(TEXT, solve=solve, max_calls=calls) for calls in (40, None)]
        leader, follower = [caller.scored(job) for job in jobs]
        assert 4 < len(leader.tokens) < len(TEXT)
        assert follower.stats.shared_tokens == leader.stats.solved_tokens
        assert logprobs(follower) == pytest.approx(reference(MODEL, TEXT), abs=NEAR)


def test_kept_states_hold_no_others_memory(caller: Caller) -> None:
    jobs = [caller.score((*TEXT, *TEXT, *TEXT), owner=owner) for owner in ("ann", "bob")]
    for job in jobs:
        caller.result(job)
    kept = caller.engine._runner._sharing._prefixes._kept
    traces = [trace for trace in kept if ("fresh", "ann") == trace.key]
    states = [state for trace in traces for state in trace.states]
    assert len(states) == caller.engine._runner._sharing._prefixes.longest == 50
    held = {state.untyped_storage().data_ptr(): state.untyped_storage() for state in states}
    assert sum(storage.nbytes() for storage in held.values()) == sum(s.nbytes for s in states)
