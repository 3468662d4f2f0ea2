"""Forks of one session under a small budget: they share memory until each goes on by itself."""

import random

import pytest

from tests.server.calls import TIGHT, Stubs
from tests.server.test_persistence import NEAR, TEXT, logprobs, whole

BEGIN = "It was a dark"
RUNNING = 3
FORKS = RUNNING + 5


def look(server, most):
    """Everything adds up, and sessions take no more of the device than they may."""
    engine = server.engine()
    assert engine.check().result(60) == []
    assert engine.sessions.holding() <= most
    samples = server.metrics()
    assert samples['deqlm_session_memory_bytes{model="pieces"}'] <= most * engine.session_bytes


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("store", ["memory", "file"])
def test_forks_that_go_on_stay_within_the_budget(serve, live_server, store, most):
    """One after another in several orders, and all at once: nothing they were told is lost."""
    changes = {"session_store": "memory"} if store == "memory" else {}
    budget = most * live_server.engine().session_bytes
    server = serve(resident_bytes=budget, max_running=RUNNING, **changes)
    stubs, draw = Stubs(server.channel), random.Random(most)
    _, first, second = whole(live_server, [BEGIN, TEXT, TEXT])
    for order in ("as made", "last first", "any", "at once"):
        origin = stubs.create(solver=TIGHT)
        begun = stubs.score(BEGIN, session_id=origin).position
        forks = [stubs.fork(origin).session_id for _ in range(FORKS)]
        look(server, most)
        assert server.engine().sessions.resident >= FORKS + 1, "they do not share its memory"
        if order == "last first":
            forks.reverse()
        elif order == "any":
            draw.shuffle(forks)
        for expected in (first, second):
            calls = [stubs.begin_score(TEXT, session_id=one) for one in forks if order == "at once"]
            for index, fork in enumerate(forks):
                found = calls[index].result() if calls else stubs.score(TEXT, session_id=fork)
                assert logprobs(found) == pytest.approx(expected, abs=NEAR)
                look(server, most)
        for fork in forks:
            assert stubs.get(fork).position == begun + len(first) + len(second)
        # Who has not gone on is as before, wherever that is now.
        assert stubs.get(origin).position == begun
        assert logprobs(stubs.score(TEXT, session_id=origin)) == pytest.approx(first, abs=NEAR)
        for session in (origin, *forks):
            stubs.delete(session)
    server.check()
