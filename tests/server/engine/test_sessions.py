"""Sessions: ownership, leases, forks, time to live; ``test_sessions_machine.py`` has the rest."""

import pytest

from server.engine.errors import SessionBusy, SessionLimit, SessionNotFound
from server.engine.requests import Lease
from server.engine.results import Totals
from server.engine.sessions import SessionTable
from server.engine.slots import SlotPool
from server.engine.solve import Solve
from tests.server.engine.sessions_model import STATES


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_table(
    max_sessions: int = 4, slots: int = 8, max_resident: int | None = None
) -> tuple[SessionTable, SlotPool, Clock]:
    pool, clock = SlotPool(slots), Clock()
    table = SessionTable(
        pool,
        max_sessions=max_sessions,
        max_resident=max_resident,
        session_bytes=100,
        monotonic=clock,
        wall=clock,
    )
    return table, pool, clock


def create(table: SessionTable, owner: str = "ann", ttl_s: float = 10.0) -> str:
    return table.create(owner=owner, ttl_s=ttl_s, solve=Solve()).session_id


def commit_new(table: SessionTable, pool: SlotPool, lease: Lease, position: int) -> int:
    slot = pool.acquire()
    assert slot is not None
    view = table.commit(
        lease, slot=slot, position=position, totals=Totals(position, -1.0), last_token=position
    )
    assert view is not None
    assert view.position == position
    return slot


def test_foreign_unknown_and_deleted_sessions_look_alike() -> None:
    table, _, _ = make_table()
    session = create(table)
    for call in (table.get, table.acquire, table.delete, table.fork):
        with pytest.raises(SessionNotFound, match=session):
            call(session, "bob")
    table.delete(session, "ann")
    with pytest.raises(SessionNotFound, match=f"session_id '{session}' is unknown, deleted"):
        table.get(session, "ann")


def test_ids_are_long_and_different() -> None:
    table, _, _ = make_table(max_sessions=50, slots=60)
    ids = {create(table) for _ in range(50)}
    assert len(ids) == 50
    assert all(len(session_id) >= 24 for session_id in ids)


def test_a_busy_session_is_left_alone() -> None:
    table, _, clock = make_table()
    session = create(table)
    lease = table.acquire(session, "ann")
    for call in (table.acquire, table.delete, table.fork):
        with pytest.raises(SessionBusy, match=session):
            call(session, "ann")
    clock.now += 1000
    assert table.get(session, "ann").busy, "a session expired under a call"
    table.release(lease)
    table.release(lease)
    assert not table.get(session, "ann").busy


def test_commit_after_release_changes_nothing() -> None:
    table, pool, _ = make_table()
    session = create(table)
    old = table.acquire(session, "ann")
    table.release(old)
    new = table.acquire(session, "ann")
    slot = pool.acquire()
    assert slot is not None
    assert table.commit(old, slot=slot, position=9, totals=Totals(), last_token=0) is None
    assert table.base(old) is None
    assert table.view(old) is None
    table.release(old)
    assert table.get(session, "ann").busy, "a stale lease ended another call's lease"
    assert table.base(new) is not None
    pool.release(slot)


def test_a_session_that_is_not_saved_is_not_released() -> None:
    table, pool, _ = make_table()
    session = create(table)
    made = table.snapshot(session)
    assert made is not None
    lease = table.acquire(session, "ann")
    assert not table.release_kept(lease), "the store has never had it"
    assert table.get(session, "ann").busy
    table.mark_saved(made)
    commit_new(table, pool, lease, 7)
    assert not table.release_kept(lease, held=made.revision), "it has the session as it was before"
    assert table.release_kept(lease, held=made.revision + 1)
    assert not table.get(session, "ann").busy
    assert table.release_kept(lease), "it is over"


def test_forks_share_memory_until_one_goes_on() -> None:
    table, pool, _ = make_table()
    session = create(table)
    lease = table.acquire(session, "ann")
    commit_new(table, pool, lease, 7)
    table.release(lease)
    fork = table.fork(session, "ann", ttl_s=5.0)
    assert (fork.position, fork.totals.scored_tokens, fork.ttl_s) == (7, 7, 5.0)
    assert fork.last_token == 7
    assert pool.used == table.holding() == 1
    lease = table.acquire(fork.session_id, "ann")
    commit_new(table, pool, lease, 8)
    table.release(lease)
    assert pool.used == 2
    assert table.get(session, "ann").position == 7
    table.delete(session, "ann")
    table.delete(fork.session_id, "ann")
    assert pool.used == 0


def test_who_leaves_first_is_by_the_last_use_of_what_they_share() -> None:
    table, pool, _ = make_table(max_sessions=8, max_resident=3)
    old, other, busy = create(table), create(table), create(table)
    for session in (old, other, busy):
        lease = table.acquire(session, "ann")
        commit_new(table, pool, lease, 7)
        table.release(lease)
    fork = table.fork(old, "ann").session_id  # used now, and so is the memory of the old one
    newest = create(table)
    lease = table.acquire(newest, "ann")
    held = table.acquire(busy, "ann")
    assert not table.has_room(lease)
    assert [set(group) for group in table.could_leave(lease)] == [{other}, {old, fork}]
    table.release(held)
    assert [set(group) for group in table.could_leave(lease)] == [{other}, {old, fork}, {busy}]
    # Who goes on from what others share needs room of its own, or that they leave it.
    own = table.acquire(fork, "ann")
    assert not table.has_room(own)
    assert {old} in [set(group) for group in table.could_leave(own)]
    assert [set(group) for group in table.could_leave(lease)] == [{other}, {busy}]
    assert table.vacate(old, STATES)
    assert table.has_room(own)
    assert table.holding() == 3
    table.release(own)
    assert not table.has_room(own), "the lease is over"
    assert table.could_leave(lease)


def test_time_to_live_counts_from_the_last_use() -> None:
    table, _, clock = make_table()
    session = create(table, ttl_s=10.0)
    clock.now += 9
    table.release(table.acquire(session, "ann"))
    clock.now += 9
    assert table.get(session, "ann").expire_time == clock.now + 1
    clock.now += 2
    with pytest.raises(SessionNotFound):
        table.get(session, "ann")


def test_a_full_table_says_so_and_keeps_everybody() -> None:
    table, _, _ = make_table(max_sessions=2)
    first, second = create(table), create(table)
    with pytest.raises(SessionLimit, match="sessions must be at most 2"):
        create(table)
    with pytest.raises(SessionLimit):
        table.fork(first, "ann")
    assert [view.session_id for view in table.list("ann")] == [first, second]
    assert table.list("bob") == []


def test_a_clock_that_goes_back_delays_no_expiry() -> None:
    table, _, clock = make_table()
    session = create(table, ttl_s=10.0)
    clock.now -= 100
    table.release(table.acquire(session, "ann"))
    clock.now += 11
    assert table.expire() == 1
