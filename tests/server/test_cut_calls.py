"""Calls that their clients leave between the commit and its way to the store."""

import contextlib
import math
import shutil
import threading
import time
from pathlib import Path

import grpc
import pytest

from deqlm.v1 import common_pb2, generation_pb2, session_pb2
from server import call as call_module
from server.call import Call
from server.store.blob import read_blob
from server.store.sqlite import SQLiteStore
from tests.server.calls import FLUSH, TIGHT, Stubs, to_input
from tests.server.test_exports import give_out
from tests.waiting import eventually

TEXT = "It was a dark and stormy night; the rain fell in torrents"
IN_STORE = common_pb2.KEPT_IN_STORE


class Window:
    """Has a client leave as soon as its next commit is made, before anybody hears of that.

    The engine's thread stands still in the commit until the call is over.
    """

    def __init__(self, server) -> None:
        self._guard, self._table = server.server._guard, server.engine().sessions
        self._commit, self._table.commit = self._table.commit, self._stop
        self.leave = None
        self.passed = threading.Event()

    def _stop(self, lease, **values):
        view = self._commit(lease, **values)
        assert view is not None
        self._table.commit = self._commit
        self.leave()
        eventually(lambda: self._guard.running == 0)
        self.passed.set()
        return view


def begin(stubs, session, what, over):
    """A call that goes on until it is cancelled; how to do that."""
    if what == "score":
        return stubs.begin_score("and the wind", session_id=session).cancel
    if what == "generate":
        request = generation_pb2.GenerateRequest(
            session_id=session,
            prompt=to_input("and the wind"),
            stop=generation_pb2.StopOptions(max_tokens=3, ignore_eos=True),
        )
        call = stubs.generate(request)
    else:
        call = stubs.stream(open_ended(["and the wind", FLUSH], over), session_id=session)

    def read():
        with pytest.raises(grpc.RpcError):
            for _ in call:
                pass

    threading.Thread(target=read).start()
    return call.cancel


def open_ended(messages, over):
    yield from messages
    over.wait(60)


def stored(file: Path, session: str):
    """The session as it would be after a kill at this moment."""
    folder = file.parent / f"killed-{session}"
    folder.mkdir()
    for name in (file.name, f"{file.name}-wal"):
        shutil.copy(file.parent / name, folder / name)
    store = SQLiteStore(folder / file.name)
    try:
        return read_blob(store.read(session), strict=True).snapshot
    finally:
        store.close()


@pytest.mark.parametrize("what", ["score", "stream", "generate"])
def test_a_commit_is_saved_without_its_client(serve, path, what):
    server = serve(store_timeout_s=60.0)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create(solver=TIGHT)
    before = stubs.score(TEXT, session_id=session).position
    window, over, begun = Window(server), threading.Event(), threading.Event()
    cancels = []

    def leave():
        assert begun.wait(60)
        cancels[0]()

    window.leave = leave
    cancels.append(begin(stubs, session, what, over))
    begun.set()
    assert window.passed.wait(60)
    over.set()
    # As a client does that goes on with a stream which was lost.
    eventually(lambda: not stubs.get(session).busy)
    kept = stored(path, session)
    view = stubs.get(session)
    assert kept.position == view.position > before
    assert (kept.totals.scored_tokens, kept.states is None) == (view.position, False)
    assert server.server._persistence.settling == set()
    assert stubs.score(TEXT, session_id=session).kept == IN_STORE


class Standstill:
    """Has an engine's thread stand still between two calls of f."""

    def __init__(self, server) -> None:
        self._may_go_on, stands = threading.Event(), threading.Event()

        def stand():
            stands.set()
            assert self._may_go_on.wait(60)

        self._errand = server.engine().perform(stand)
        assert stands.wait(60)

    def end(self) -> None:
        self._may_go_on.set()
        self._errand.result(60)


def test_exports_that_nobody_waits_for_harm_nobody(serve, caplog):
    """Each of them is an errand on the engine's thread, between the calls of f of others."""
    server = serve()
    ann, bob = Stubs(server.channel, owner="ann"), Stubs(server.channel, owner="bob")
    sessions = [ann.create(solver=TIGHT) for _ in range(4)]
    for session in sessions:
        ann.score([5, 6], session_id=session)
    others = bob.begin_score([7] * 400, solver=TIGHT)
    eventually(lambda: server.engine().snapshot().running_jobs == 1)
    still = Standstill(server)
    exports = [
        ann.sessions.ExportSession.future(
            session_pb2.ExportSessionRequest(session_id=session), metadata=ann.metadata
        )
        for session in sessions
    ]
    eventually(lambda: len(server.engine()._desk._errands) == len(sessions))
    for export in exports:
        export.cancel()
    eventually(lambda: server.server._guard.running == 1)
    still.end()
    assert others.result(60).position == 400
    assert "a turn of the engine failed" not in caplog.text
    assert len(give_out(ann, sessions[0])) > 0


@pytest.mark.parametrize("what", ["create", "fork", "import"])
def test_a_session_that_is_made_is_stored_without_its_client(serve, path, what):
    server = serve()
    stubs = Stubs(server.channel, owner="ann")
    origin = stubs.create(solver=TIGHT)
    stubs.score(TEXT, session_id=origin)
    blob = give_out(stubs, origin)
    requests = {
        "create": (stubs.sessions.CreateSession, session_pb2.CreateSessionRequest()),
        "fork": (stubs.sessions.ForkSession, session_pb2.ForkSessionRequest(session_id=origin)),
        "import": (stubs.sessions.ImportSession, session_pb2.ImportSessionRequest(blob=blob)),
    }
    call, request = requests[what]
    still = Standstill(server)
    making = call.future(request, metadata=stubs.metadata)
    eventually(lambda: len(server.engine()._desk._errands) == 1)
    making.cancel()
    eventually(lambda: server.server._guard.running == 0)
    still.end()
    eventually(lambda: not server.server._persistence.settling)
    (made,) = {session.session_id for session in stubs.list().sessions} - {origin}
    assert stored(path, made).position == stubs.get(made).position


def test_one_session_that_cannot_be_had_does_not_stop_a_stop(serve, monkeypatch, caplog):
    """The others are saved, and it is counted."""
    server = serve()
    stubs, engine = Stubs(server.channel, owner="ann"), server.engine()
    sessions = [stubs.create() for _ in range(3)]
    for session in sessions:
        stubs.score([5, 6], session_id=session)
        engine.sessions._sessions[session].saved = 0
    capture, captured = engine.capture, []

    def fails_once(session_id):
        captured.append(session_id)
        if len(captured) == 1:
            raise RuntimeError("lost")
        return capture(session_id)

    monkeypatch.setattr(engine, "capture", fails_once)
    server.run(server.server.stop(grace_s=0.0))
    assert sorted(captured) == sorted(sessions)
    assert f"session {captured[0]} could not be captured" in caplog.text
    assert (server.server.unsaved, server.server._persistence.keeper.waiting) == (1, 0)


def test_a_call_that_nobody_leaves_is_saved_once(serve):
    server = serve(store_timeout_s=60.0)
    stubs = Stubs(server.channel, owner="ann")
    store, written = server.server._persistence.keeper._store, []
    write = store.write

    def count(entries, deleted):
        written.extend(entry.session_id for entry in entries)
        write(entries, deleted)

    store.write = count
    session = stubs.create(solver=TIGHT)
    stubs.score(TEXT, session_id=session)
    stubs.score(TEXT, session_id=session, idempotency_key="a")
    stubs.score(session_id=session, candidates=[to_input("of"), to_input("in")])
    answers = [*stubs.stream([TEXT, FLUSH, TEXT, FLUSH], session_id=session)]
    commits = sum(len(answer.tokens) > 0 for answer in answers)
    assert not stubs.get(session).busy
    assert written == [session] * (3 + commits), "made, scored twice, and the stream's"


def test_a_client_that_leaves_while_it_is_answered_is_no_defect(live_server, caplog, monkeypatch):
    """A message on its way fails then, before the server is told that the call is cancelled."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    send, sending = Call.send, [0.0]

    async def watched(self, response):
        sending[0] = time.monotonic()
        await send(self, response)
        sending[0] = math.inf

    monkeypatch.setattr(Call, "send", watched)
    failed, translate = [], call_module._cancelled_if_gone

    @contextlib.contextmanager
    def counted():
        with translate():
            try:
                yield
            except Exception as error:
                failed.append(type(error).__name__)
                raise

    monkeypatch.setattr(call_module, "_cancelled_if_gone", counted)
    for _ in range(5):
        over = threading.Event()
        sending[0] = math.inf
        with grpc.insecure_channel(live_server.address, options=options) as channel:
            messages = open_ended([[5] * 50, FLUSH] * 200, over)
            call = Stubs(channel).stream(messages, model="words", top_k=20)
            next(call)
            # What it does not read fills what lies between.
            eventually(lambda: time.monotonic() - sending[0] > 0.5)
            call.cancel()
            over.set()
    eventually(lambda: live_server.server._guard.running == 0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert set(failed) == {call_module._FAILED_ON_ITS_WAY}
