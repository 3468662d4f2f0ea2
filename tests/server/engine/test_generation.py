"""Generation by the engine: what is drawn, why it ends, what it leaves in a session."""

import pytest

from server.engine.requests import Sampling, Stop
from server.engine.results import PromptSolved
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    TEXT,
    Caller,
    drawn_ids,
    generated,
    logprobs,
    reference,
)


def test_greedy_generation_follows_the_likeliest_word(caller: Caller) -> None:
    events = caller.events(caller.generate(TEXT[:4], 12, sampling=Sampling(temperature=0)))
    assert isinstance(events[0], PromptSolved)
    assert events[0].totals.logprob_sum == pytest.approx(sum(reference(MODEL, TEXT[:4])), abs=NEAR)
    final = generated(events[-1])
    assert (final.reason, final.totals.scored_tokens, len(drawn_ids(events))) == ("length", 12, 12)
    again = caller.scored(caller.score((*TEXT[:4], *drawn_ids(events)), top_k=1))
    assert [t.alternatives[0][0] for t in again.tokens[4:]] == drawn_ids(events)
    assert final.totals.logprob_sum == pytest.approx(sum(logprobs(again)[4:]), abs=NEAR)


def test_seeds_reproduce_beside_other_requests(caller: Caller) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.95, seed=11)
    alone = drawn_ids(caller.events(caller.generate(TEXT[:3], 20, sampling=sampling)))
    others = [caller.score(TEXT) for _ in range(3)]
    job = caller.generate(TEXT[:3], 20, sampling=sampling)
    others += [caller.generate((), 15, sampling=Sampling(seed=5)) for _ in range(2)]
    assert drawn_ids(caller.events(job)) == alone
    for other in others:
        caller.result(other)
    different = caller.generate(TEXT[:3], 20, sampling=Sampling(temperature=1.2, seed=12))
    assert drawn_ids(caller.events(different)) != alone


def test_a_generation_is_committed_whole(caller: Caller) -> None:
    with caller.session() as lease:
        caller.result(caller.score(TEXT[:5], lease=lease))
        events = caller.events(caller.generate((7,), 6, lease=lease))
        tokens = drawn_ids(events)
        final = generated(events[-1])
        assert final.position == 5 + 1 + 6
        assert final.session is not None
        assert final.session.last_token == tokens[-1]
        assert final.session.totals.scored_tokens == final.position
        whole = sum(reference(MODEL, (*TEXT[:5], 7, *tokens)))
        assert final.session.totals.logprob_sum == pytest.approx(whole, abs=NEAR)
        event = caller.result(caller.score((3,), lease=lease))
        expected = reference(MODEL, (*TEXT[:5], 7, *tokens, 3))[-1:]
        assert logprobs(event) == pytest.approx(expected, abs=NEAR)


def test_endings(caller: Caller) -> None:
    greedy = Sampling(temperature=0)
    first = drawn_ids(caller.events(caller.generate((), 4, sampling=greedy)))
    stop = Stop(max_tokens=10, stop_ids=frozenset({first[1]}))
    events = caller.events(caller.generate((), 0, sampling=greedy, stop=stop))
    final = generated(events[-1])
    assert (final.reason, final.stop_id) == ("stop_id", first[1])
    at = first.index(first[1])
    assert drawn_ids(events) == first[: at + 1]
    late = Stop(max_tokens=10, min_tokens=4, stop_ids=frozenset(range(39)))
    final = generated(caller.result(caller.generate((), 0, sampling=greedy, stop=late)))
    assert final.totals.scored_tokens > 4


def test_repetition_is_penalised_in_prompt_and_drawn_text(caller: Caller) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=1000.0)
    stop = Stop(max_tokens=30, eos_id=None)
    first = drawn_ids(caller.events(caller.generate((), 1, sampling=Sampling(temperature=0))))
    drawn = drawn_ids(
        caller.events(caller.generate(tuple(first), 30, sampling=sampling, stop=stop))
    )
    assert len({*first, *drawn}) == 31
