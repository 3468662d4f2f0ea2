"""The engine's look at itself: nothing in a whole one, and each thing that is broken by name."""

import pytest

from server.engine.limits import EngineLimits
from server.engine.solve import Solve
from server.engine.work import Work
from tests.server.engine.helpers import MODEL, Caller, running_engine

LIMITS = EngineLimits(max_batch_tokens=24, max_running=4, window=5, prefix_cache=100)


def take_slot(caller: Caller) -> None:
    caller.engine._slots.acquire()


def free_twice(caller: Caller) -> None:
    caller.engine._slots._free.append(caller.engine._slots._free[0])


def take_row(caller: Caller) -> None:
    caller.engine._rows.acquire()


def lose_solver_row(caller: Caller) -> None:
    caller.engine._scheduler._free_rows.pop()


def count_place(caller: Caller) -> None:
    caller.engine._scheduler._owned["ann"] += 1


def count_job(caller: Caller) -> None:
    caller.engine._desk.waiting._count += 1


def count_tokens(caller: Caller) -> None:
    caller.engine._desk.waiting._tokens += 5


def forget_resident(caller: Caller) -> None:
    caller.engine.sessions._resident.popitem()


def lose_token(caller: Caller) -> None:
    (session,) = caller.engine.sessions._sessions.values()
    session.position += 1


def never_expire(caller: Caller) -> None:
    (session,) = caller.engine.sessions._sessions.values()
    session.lease = None
    caller.engine.sessions._next_expiry = 1e18


def share_lease(caller: Caller) -> None:
    (session,) = caller.engine.sessions._sessions.values()
    session.lease = 77


def count_prefix(caller: Caller) -> None:
    caller.engine._runner._sharing._prefixes._tokens += 1


BREAKS = [
    (take_slot, "slot 1 counts 1 holders, and 0 hold it"),
    (free_twice, "listed as free"),
    (take_row, "row 0 counts 1 holders"),
    (lose_solver_row, "rows of the solver"),
    (count_place, "places are counted"),
    (count_job, "the queue counts 1 jobs, and 0 wait"),
    (count_tokens, "the queue counts 5 tokens, and 0 wait"),
    (forget_resident, "half resident"),
    (lose_token, "other tokens than its position"),
    (never_expire, "would not expire in time"),
    (share_lease, "leases [77]"),
    (count_prefix, "the prefix cache counts"),
]


@pytest.mark.parametrize(("break_it", "told"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_what_is_broken_is_named(break_it, told) -> None:
    before, found = ["not looked"], []
    with pytest.raises(AssertionError), running_engine(MODEL, LIMITS) as caller:
        view = caller.engine.sessions.create(owner="", ttl_s=60, solve=Solve())
        lease = caller.engine.sessions.acquire(view.session_id, "")
        caller.scored(caller.score((1, 2, 3), lease=lease))
        before = caller.engine.check().result(60)
        break_it(caller)
        found = caller.engine.check().result(60)
        # Leaving finds it as well, and fails.
    assert before == []
    assert any(told in problem for problem in found), found


def test_amid_work_everything_adds_up() -> None:
    with running_engine(MODEL, LIMITS) as caller, caller.session() as lease:
        jobs = [caller.score((1, 2, 3, 4) * 5, candidates=((5, 6), (7, 8))) for _ in range(6)]
        jobs += [caller.generate((1, 2), 30) for _ in range(6)]
        jobs.append(caller.score((3, 4), lease=lease))
        looks = 0
        while works_left(caller):
            assert caller.engine.check().result(60) == []
            looks += 1
        for job in jobs:
            caller.result(job)
    assert looks > 1


def works_left(caller: Caller) -> list[Work]:
    return [*caller.engine._desk.waiting, *caller.engine._desk.running]
