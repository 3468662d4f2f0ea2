"""A store that is down, slow or full: the service goes on, and says so."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deqlm.v1 import common_pb2, generation_pb2
from server.store.base import Entry, StoreError
from server.store.keeper import Keeper
from server.store.memory import MemoryStore
from tests.server.calls import TIMEOUT_S, Stubs, fails, to_input
from tests.server.test_store import make_snapshot
from tests.waiting import eventually

IN_STORE, IN_MEMORY = common_pb2.KEPT_IN_STORE, common_pb2.KEPT_IN_MEMORY
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Moody(MemoryStore):
    """A store that fails, or waits, when told to."""

    outlives = True

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()

    def write(self, entries, deleted):
        self.began.set()
        assert self.may_go_on.wait(60)
        if self.fails:
            raise StoreError("no room")
        super().write(entries, deleted)

    def read(self, session_id):
        if self.fails:
            raise StoreError("no answer")
        return super().read(session_id)


@pytest.fixture
def moody():
    return Moody()


@pytest.fixture
def keeper(moody):
    keeper = Keeper(moody, timeout_s=0.1)
    yield keeper
    moody.may_go_on.set()
    moody.fails = False
    assert keeper.close(timeout_s=20)


def in_threads(count, work):
    """Does something in several threads at once; what one raises is raised."""
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, range(count)))


class TestKeeper:
    def test_what_is_saved_can_be_loaded(self, keeper):
        snapshot = make_snapshot()
        assert keeper.save(snapshot).result(20)
        assert keeper.load(snapshot.session_id).result(20) == snapshot
        assert keeper.stored[0] == 1
        assert keeper.drop(snapshot.session_id).result(20)
        assert keeper.load(snapshot.session_id).result(20) is None
        assert keeper.stored == (0, 0)

    def test_a_store_that_fails_gets_it_later(self, keeper, moody):
        saved: Future = Future()
        keeper.on_saved = saved.set_result
        moody.fails = True
        snapshot = make_snapshot()
        assert not keeper.save(snapshot).result(20)
        assert not keeper.is_up
        assert keeper.load(snapshot.session_id).result(20) == snapshot, "it is held meanwhile"
        with pytest.raises(StoreError):
            keeper.load("another").result(20)
        assert not keeper.save(make_snapshot(6, revision=8)).result(0), "nobody waits for it"
        moody.fails = False
        assert saved.result(20).revision == 8
        pause, deadline = threading.Event(), time.monotonic() + 60
        while not keeper.is_up:  # the keeper's thread tells of the snapshot first
            assert time.monotonic() < deadline
            pause.wait(0.005)

    def test_a_store_that_failed_to_read_is_found_to_be_back(self, keeper, moody, monkeypatch):
        monkeypatch.setattr("server.store.standing._LONGEST_PAUSE_S", 0.02)
        moody.fails = True
        with pytest.raises(StoreError):
            keeper.load("a").result(20)
        assert not keeper.is_up
        moody.fails = False
        pause = threading.Event()
        while not keeper.is_up:
            pause.wait(0.005)

    def test_what_was_never_stored_is_dropped_at_once(self, keeper, moody):
        """A session made and deleted while the store is down leaves nothing that waits."""
        moody.fails = True
        assert not keeper.save(make_snapshot(session_id="first")).result(60)

        def come_and_go(thread):
            for number in range(1250):
                snapshot = make_snapshot(session_id=f"{thread} {number}")
                keeper.save(snapshot).result(60)
                assert keeper.drop(snapshot.session_id).result(60) is not None

        in_threads(4, come_and_go)
        assert keeper.waiting <= 64, "only what one transaction tried"
        assert keeper.drop("never seen").result(0)
        assert keeper.drop("first").result(60) is False, "it may be there: writing it was tried"
        moody.fails = False
        eventually(lambda: keeper.waiting == 0)
        assert not list(moody.heads())

    def test_what_was_stored_is_dropped_when_it_is_back(self, moody):
        keeper = Keeper(moody, timeout_s=60.0)
        stored = [make_snapshot(session_id=f"{number}") for number in range(200)]
        for told in [keeper.save(snapshot) for snapshot in stored]:
            assert told.result(60)
        moody.fails = True
        assert not keeper.save(make_snapshot(session_id="other")).result(60)

        def drop(thread):
            for snapshot in stored[thread::4]:
                assert keeper.drop(snapshot.session_id).result(60) is False
                assert keeper.drop(snapshot.session_id).result(60) is False

        in_threads(4, drop)
        assert keeper.waiting == 201
        moody.fails = False
        eventually(lambda: keeper.waiting == 0)
        assert [head.session_id for head in moody.heads()] == ["other"]
        assert keeper.stored[0] == 1
        assert keeper.close(timeout_s=60)

    def test_what_a_failed_transaction_may_have_stored_is_dropped(self, keeper, moody):
        write = moody.write

        def lose_the_answer(entries, deleted):
            write(entries, deleted)
            raise StoreError("the connection was cut")

        moody.write = lose_the_answer
        assert not keeper.save(make_snapshot()).result(60)
        assert list(moody.heads())
        keeper.drop("ab12").result(60)
        moody.write = write
        eventually(lambda: keeper.waiting == 0)
        assert not list(moody.heads())

    def test_a_drop_takes_what_waits_with_it(self, keeper, moody):
        moody.may_go_on.clear()
        keeper.save(make_snapshot(session_id="other"))
        assert moody.began.wait(60)
        told = keeper.save(make_snapshot())
        assert keeper.drop("ab12").result(60)
        assert told.result(60) is False
        moody.may_go_on.set()
        assert keeper.load("ab12").result(60) is None
        assert keeper.load("other").result(60) is not None

    def test_a_slow_store_counts_as_down(self, keeper, moody):
        moody.may_go_on.clear()
        first = keeper.save(make_snapshot())
        assert moody.began.wait(20)
        pause = threading.Event()
        while keeper.is_up:
            pause.wait(0.005)
        assert not keeper.save(make_snapshot(revision=8)).result(0)
        moody.may_go_on.set()
        assert first.result(20)

    def test_revisions_do_not_go_back(self, keeper, moody):
        moody.may_go_on.clear()
        keeper.save(make_snapshot(session_id="other"))
        assert moody.began.wait(20)
        keeper.save(make_snapshot(6, revision=8))
        late = keeper.save(make_snapshot(5, revision=7))
        moody.may_go_on.set()
        late.result(20)
        assert keeper.load("ab12").result(20).revision == 8

    def test_damaged_bytes_are_no_session(self, keeper, moody):
        MemoryStore.write(moody, [Entry("a", b"", b"noise")], [])
        assert keeper.load("a").result(20) is None

    def test_a_closed_one_refuses(self, moody):
        keeper = Keeper(moody, timeout_s=0.1)
        keeper.close(timeout_s=20)
        with pytest.raises(StoreError):
            keeper.load("a").result(20)
        assert not keeper.save(make_snapshot()).result(20)


def health(server) -> int:
    request = health_pb2.HealthCheckRequest(service="deqlm.store")
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(request, timeout=TIMEOUT_S).status


def wait_health(server, status) -> None:
    request = health_pb2.HealthCheckRequest(service="deqlm.store")
    stub = health_pb2_grpc.HealthStub(server.channel)
    for answer in (watch := stub.Watch(request, timeout=TIMEOUT_S)):
        if answer.status == status:
            watch.cancel()
            return


def test_redis_goes_and_comes_back(make_server, tiny_models, redis_server):
    fields = {
        "model": (f"words={tiny_models / 'words'}",),
        "session_store": redis_server.url,
        "store_timeout_s": 1.0,
        "resident_bytes": 1,
    }
    server = make_server(**fields)
    stubs = Stubs(server.channel)
    session, away = stubs.create(), stubs.create()
    stubs.score([5, 6], session_id=away)
    assert stubs.score([5, 6], session_id=session).kept == IN_STORE
    assert health(server) == SERVING
    redis_server.stop()
    answer = stubs.score([7], session_id=session)
    assert (answer.kept, answer.position) == (IN_MEMORY, 3)
    wait_health(server, NOT_SERVING)
    metrics = server.metrics()
    assert metrics["deqlm_store_up"] == 0
    assert metrics['deqlm_store_errors_total{operation="write"}'] >= 1
    assert metrics["deqlm_store_waiting"] == 1
    # What is on the device, or held, goes on; what the store alone has does not.
    assert stubs.score([8], session_id=session).position == 4
    assert stubs.score([5]).position == 1
    told = fails(lambda: stubs.score([7], session_id=away))
    assert (told.code, told.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert told.retry_s > 0
    assert stubs.score([7], session_id=stubs.create()).kept == IN_MEMORY
    redis_server.start()
    wait_health(server, SERVING)
    assert stubs.score([7], session_id=away).position == 3
    assert stubs.score([9], session_id=session).kept == IN_STORE
    server.run(server.server.stop(grace_s=0.0))
    again = Stubs(make_server(**fields).channel)
    assert again.get(session).position == 5
    assert again.score([9], session_id=session).position == 6


def test_redis_that_answers_nobody(make_server, tiny_models, redis_server):
    server = make_server(
        model=(f"words={tiny_models / 'words'}",),
        session_store=redis_server.url,
        store_timeout_s=0.3,
    )
    stubs = Stubs(server.channel)
    session = stubs.create()
    redis_server.pause()
    assert stubs.score([5], session_id=session).kept == IN_MEMORY
    wait_health(server, NOT_SERVING)
    stop = generation_pb2.StopOptions(max_tokens=3, ignore_eos=True)
    request = generation_pb2.GenerateRequest(session_id=session, prompt=to_input([5]), stop=stop)
    assert [*stubs.generate(request)][-1].finished.kept == IN_MEMORY
    redis_server.go_on()
    wait_health(server, SERVING)
    assert stubs.score([5], session_id=session).kept == IN_STORE


@pytest.fixture
def small_disk(tmp_path: Path):
    """A folder with a mebibyte of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(make_server, tiny_models, small_disk):
    server = make_server(
        model=(f"words={tiny_models / 'words'}",),
        session_store=f"sqlite:{small_disk / 'sessions.db'}",
    )
    stubs = Stubs(server.channel)
    session = stubs.create()
    assert stubs.score([5], session_id=session).kept == IN_STORE
    filler = small_disk / "filler"
    with pytest.raises(OSError):
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    kept = [stubs.score([6], session_id=session).kept for _ in range(40)]
    assert kept[-1] == IN_MEMORY
    wait_health(server, NOT_SERVING)
    filler.unlink()
    wait_health(server, SERVING)
    answer = stubs.score([6], session_id=session)
    assert (answer.kept, answer.position) == (IN_STORE, 42)


def test_a_stop_saves_what_was_not_saved(tmp_path, tiny_models):
    from tests.server.killed import Killed

    server = Killed(tmp_path, tiny_models / "words")
    try:
        server.wait_ready()
        with server.channel() as channel:
            stubs = Stubs(channel)
            session = stubs.create()
            position = stubs.score([5] * 20, session_id=session).position
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        server.start()
        server.wait_ready()
        with server.channel() as channel:
            assert Stubs(channel).get(session).position == position
    finally:
        server.kill()
