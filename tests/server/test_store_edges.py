"""Corners of the session store in which a session could be lost, or come back from the dead."""

import math
import threading
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from deqlm.v1 import common_pb2
from server.engine.results import Totals
from server.engine.snapshots import States
from server.engine.solve import Solve, Solved
from server.store import keeper as keeper_module
from server.store.base import StoreError
from server.store.blob import read_blob, read_head, write_blob, write_head
from server.store.keeper import Keeper
from tests.server.calls import TIGHT, Stubs
from tests.server.test_store import make_snapshot
from tests.server.test_store_down import Moody
from tests.waiting import eventually

IN_STORE, IN_MEMORY = common_pb2.KEPT_IN_STORE, common_pb2.KEPT_IN_MEMORY
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def has(server, session_id):
    """Whether the store has it: asked of the store itself, in its turn."""
    return server.server._persistence.keeper.load(session_id).result(20) is not None


def health_of_store(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service="deqlm.store")).status


def test_a_smaller_bound_leaves_the_rest_in_the_store(serve):
    stubs = Stubs(serve(max_sessions=6).channel, owner="ann")
    ids = [stubs.create(solver=TIGHT) for _ in range(5)]
    held = [stubs.score("It was a dark night", session_id=one).position for one in ids]
    small = serve(max_sessions=2)
    listed = Stubs(small.channel, owner="ann").list(page_size=100).sessions
    assert len(listed) == 2
    assert small.metrics()["deqlm_store_sessions"] == 5
    stubs = Stubs(serve(max_sessions=6).channel, owner="ann")
    assert [stubs.get(one).position for one in ids] == held


def test_no_memory_to_make_bytes_of_a_session(serve, monkeypatch):
    """It is told as a store that fails, and written later."""
    server = serve(store_timeout_s=30.0)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create(solver=TIGHT)
    short = threading.Event()
    short.set()

    def write(snapshot):
        if short.is_set():
            raise MemoryError
        return write_blob(snapshot)

    monkeypatch.setattr(keeper_module, "write_blob", write)
    answer = stubs.score("It was", session_id=session)
    assert answer.kept == IN_MEMORY
    assert server.metrics()["deqlm_store_up"] == 0
    assert server.metrics()["deqlm_store_waiting"] == 1
    eventually(lambda: health_of_store(server) == NOT_SERVING)
    short.clear()
    eventually(lambda: health_of_store(server) == SERVING)
    eventually(lambda: server.metrics()["deqlm_store_waiting"] == 0)
    assert stubs.score("a dark", session_id=session).kept == IN_STORE
    stubs = Stubs(serve().channel, owner="ann")
    assert stubs.get(session).position > answer.position


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_store_whose_thread_is_gone_is_down(serve, monkeypatch):
    server = serve(store_timeout_s=30.0)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create(solver=TIGHT)

    def ends(snapshot):
        raise SystemExit  # ends a thread without a word

    monkeypatch.setattr(keeper_module, "write_head", ends)
    begun = time.monotonic()
    for _ in range(2):
        assert stubs.score("It was", session_id=session).kept == IN_MEMORY
    assert time.monotonic() - begun < 20, "somebody waited for what nobody does"
    assert server.metrics()["deqlm_store_up"] == 0
    eventually(lambda: health_of_store(server) == NOT_SERVING)
    keeper = server.server._persistence.keeper
    with pytest.raises(StoreError):
        keeper.load("another").result(20)
    monkeypatch.undo()


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_sums_that_are_no_numbers_are_read_again(value):
    snapshot = make_snapshot(totals=Totals(5, value))
    for opened in (read_head(write_head(snapshot)), read_blob(write_blob(snapshot), strict=True)):
        found = opened.snapshot.totals
        assert found.scored_tokens == 5
        assert str(found.logprob_sum) == str(value)
    # As they were written before.
    text = write_head(make_snapshot()).replace(
        b"-12.5", {"nan": b"NaN"}.get(str(value), b"-Infinity")
    )
    assert not math.isfinite(read_head(text).snapshot.totals.logprob_sum)


NUMBERS = st.floats(min_value=0, max_value=1e12)


@given(
    sum_=st.floats(),
    residual=st.floats(min_value=0) | st.just(math.nan),
    tol=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
    times=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    owner=st.text(max_size=20),
    counts=st.tuples(st.integers(1, 2**40), st.integers(0, 2**40)),
)
def test_whatever_a_session_holds_is_read_again(sum_, residual, tol, times, owner, counts):
    """What is written is never refused when it is read: that would lose the session."""
    states = States("float32", 6, 4, bytes(96), Solved(3, residual, "nonfinite"))
    snapshot = make_snapshot(
        totals=Totals(5, sum_),
        states=states,
        solve=Solve(tol=tol, max_nfe=counts[0]),
        owner=owner,
        ttl_s=times[0],
        create_time=times[1],
        last_used_time=times[2],
        repairs=counts[1],
    )
    found = read_blob(write_blob(snapshot), strict=True).snapshot
    assert (found.owner, found.ttl_s, found.solve) == (owner, times[0], snapshot.solve)
    assert str(found.totals.logprob_sum) == str(sum_)
    assert found.tokens == snapshot.tokens
    assert found.repairs == counts[1]
    read_head(write_head(snapshot))


def test_a_deleted_session_does_not_come_back_by_a_save_under_way(serve):
    """Its snapshot is on its way to the store while it is deleted: it left the device just now."""
    server = serve()
    stubs = Stubs(server.channel, owner="ann")
    session, other = stubs.create(solver=TIGHT), stubs.create(solver=TIGHT)
    stubs.score("It was", session_id=session)
    keeper = server.server._persistence.keeper
    late = server.engine().capture(session).result(60)
    assert late is not None
    assert keeper.save(late).result(20), "while it is there it is kept"

    store, may_go_on, blocked = keeper._store, threading.Event(), threading.Event()
    write = store.write

    def slow(entries, deleted):
        blocked.set()
        assert may_go_on.wait(60)
        write(entries, deleted)

    store.write = slow
    try:
        waiting = keeper.save(server.engine().capture(other).result(60))
        assert blocked.wait(60)
        before = keeper.save(late)  # queued while the session is there
        server.engine().sessions.delete(session, "ann")
        dropped = keeper.drop(session)
        after = keeper.save(late)  # and once more when it is not
        assert after.result(20) is False
    finally:
        may_go_on.set()
        store.write = write
    assert waiting.result(20)
    assert dropped.result(20)
    before.result(20)
    eventually(lambda: keeper.waiting == 0)
    assert not has(server, session)
    assert has(server, other)


def test_a_late_save_of_one_that_is_gone_is_not_the_new_ones(serve):
    """Both have the id that their idempotency key makes; one call must not lose the other."""
    server = serve(session_store="memory", resident_bytes=1, store_timeout_s=0.2)
    stubs = Stubs(server.channel, owner="ann")
    session, other = stubs.create(idempotency_key="one", solver=TIGHT), stubs.create(solver=TIGHT)
    for text in ("It was", " a dark", " night"):
        stubs.score(text, session_id=session)

    keeper = server.server._persistence.keeper
    write, may_go_on, blocked = keeper._store.write, threading.Event(), threading.Event()

    def slow(entries, deleted):
        blocked.set()
        assert may_go_on.wait(60)
        write(entries, deleted)

    keeper._store.write = slow
    try:
        stubs.score("It was", session_id=other)  # and the first one leaves the device
        assert blocked.wait(60)
        stubs.delete(session)
        assert stubs.create(idempotency_key="one", solver=TIGHT) == session
        held = stubs.score("in", session_id=session).position
    finally:
        may_go_on.set()
    eventually(lambda: keeper.waiting == 0 and keeper.is_up)
    assert not server.engine().sessions.is_saved(session), "nobody has saved the new one"
    stubs.score(" a dark", session_id=other)
    assert stubs.get(session).memory_bytes == 0
    assert stubs.score(" torrents", session_id=session).position > held


def test_the_one_that_is_made_anew_with_its_id_is_kept():
    keeper = Keeper(Moody(), timeout_s=20)
    old = make_snapshot(create_time=10.0, revision=9)
    new = make_snapshot(create_time=11.0, revision=1)
    assert keeper.save(old).result(20)
    keeper._store.may_go_on.clear()
    keeper._store.began.clear()
    keeper.save(make_snapshot(session_id="other"))
    assert keeper._store.began.wait(60)
    keeper.drop(old.session_id)
    told = keeper.save(new)
    keeper.save(old)
    keeper._store.may_go_on.set()
    assert told.result(20)
    assert keeper.load(old.session_id).result(20) == new
    assert keeper.close(timeout_s=20)


def test_sessions_of_a_model_that_is_not_served_expire(serve, tiny_models):
    server = serve()
    stubs = Stubs(server.channel, owner="ann")
    long, short = stubs.create(ttl_s=3600.0, solver=TIGHT), stubs.create(ttl_s=3.0, solver=TIGHT)
    assert has(server, long)
    assert has(server, short)
    words = (f"words={tiny_models / 'words'}",)
    other = serve(model=words)
    eventually(lambda: not has(other, short))
    assert has(other, long)
    eventually(lambda: other.metrics()["deqlm_store_sessions"] == 1)
    assert Stubs(serve().channel, owner="ann").get(long).session_id == long
