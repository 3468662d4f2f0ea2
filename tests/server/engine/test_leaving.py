"""Sessions that cannot leave the device, by a defect or for want of memory: their own affair."""

import threading
import time

import pytest
import torch

from server.engine.errors import Cancelled
from server.engine.limits import EngineLimits
from server.engine.requests import Stop
from server.engine.results import Failed, Scored
from server.engine.solve import Solve
from tests.server.engine.helpers import MODEL, TEXT, generated, logprobs, running_engine
from tests.server.engine.test_survival import break_once, part
from tests.waiting import eventually

SIZES = {"max_batch_tokens": 24, "max_running": 4, "window": 5, "max_sessions": 4}
LOST = RuntimeError("lost")
UNTIL_40 = Stop(max_tokens=40)
PAUSE_S = 0.3
STEPS = [
    ("_runner._memory", "capture"),
    ("_runner._memory", "put_away"),
    ("_slab", "kept_states"),
    ("sessions", "hold"),
    ("sessions", "vacate"),
]


def begun(caller, tokens):
    """An idle session that holds tokens, on the device; its id."""
    view = caller.engine.sessions.create(owner="", ttl_s=600, solve=Solve())
    lease = caller.engine.sessions.acquire(view.session_id, "")
    caller.scored(caller.score(tokens, lease=lease))
    caller.engine.sessions.release(lease)
    return view.session_id


def goes_on(caller, session, tokens):
    """Log-probabilities of more tokens."""
    lease = caller.engine.sessions.acquire(session, "")
    try:
        return logprobs(caller.scored(caller.score(tokens, lease=lease)))
    finally:
        caller.engine.sessions.release(lease)


def break_while(monkeypatch, owner, name, broken, error):
    """Calls raise while the event is set; when they did."""
    real, broke = getattr(owner, name), []

    def breaks(*args, **kwargs):
        if broken.is_set():
            broke.append(time.monotonic())
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaks)
    return broke


@pytest.mark.parametrize(
    ("path", "name", "error"),
    [*((*step, LOST) for step in STEPS), ("_slab", "kept_states", torch.OutOfMemoryError("full"))],
    ids=[*(name for _, name in STEPS), "memory"],
)
def test_one_that_cannot_leave_harms_nobody(path, name, error, monkeypatch, caplog):
    """Jobs go on, it is not tried at every turn, and it leaves when it can."""
    monkeypatch.setattr("server.engine.leaving._AGAIN_S", PAUSE_S)
    limits = EngineLimits(**SIZES, resident_idle_s=1e-3)
    with running_engine(MODEL, limits) as caller:
        engine, kept, broken = caller.engine, {}, threading.Event()
        engine.memory.put_away = lambda snapshot: kept.__setitem__(snapshot.session_id, snapshot)
        broken.set()
        broke = break_while(monkeypatch, part(engine, path), name, broken, error)
        begin = time.monotonic()
        session = begun(caller, TEXT[:6])
        assert generated(caller.result(caller.generate((1,), 40, stop=UNTIL_40))).position == 41
        eventually(lambda: len(broke) > 1)
        assert isinstance(caller.result(caller.score((1, 2, 3))), Scored)
        assert len(broke) <= 1 + (time.monotonic() - begin) / PAUSE_S
        assert "a turn of the engine failed" not in caplog.text
        assert f"session {session} did not leave the device" in caplog.text
        assert engine.snapshot().resident_sessions == 1
        broken.clear()
        eventually(lambda: engine.snapshot().sessions_left_idle == 1)
        assert kept[session].position == 6
        expected = logprobs(caller.scored(caller.score(TEXT[:9])))[6:]
        assert goes_on(caller, session, TEXT[6:9]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("path", "name"), STEPS, ids=[name for _, name in STEPS])
def test_one_that_cannot_make_room_fails_no_other_call(path, name, monkeypatch):
    monkeypatch.setattr("server.engine.leaving._AGAIN_S", 0.0)
    with running_engine(MODEL, EngineLimits(**SIZES, resident_bytes=1)) as caller:
        engine, broken = caller.engine, threading.Event()
        engine.memory.put_away = lambda snapshot: None
        sick, other = begun(caller, TEXT[:6]), begun(caller, ())
        broken.set()
        broke = break_while(monkeypatch, part(engine, path), name, broken, LOST)
        expected = logprobs(caller.scored(caller.score(TEXT)))
        assert goes_on(caller, other, TEXT[:6]) == pytest.approx(expected[:6], abs=2e-5)
        assert broke
        assert engine.sessions.get(sick, "").memory_bytes > 0
        broken.clear()
        for session in (sick, other):
            found = goes_on(caller, session, TEXT[6:])
            assert found == pytest.approx(expected[6:], abs=2e-5)
        assert engine.snapshot().sessions_left_full > 0


@pytest.mark.parametrize("path", ["_runner._memory.settle", "sessions.settle"])
def test_what_breaks_as_one_comes_back_ends_its_job_alone(path, monkeypatch):
    """The slot that it was to have is nobody's."""
    with running_engine(MODEL, EngineLimits(**SIZES, resident_bytes=1)) as caller:
        engine = caller.engine
        engine.memory.put_away = lambda snapshot: None
        away, _ = begun(caller, TEXT[:6]), begun(caller, TEXT[:6])
        assert engine.sessions.get(away, "").memory_bytes == 0
        owner, _, name = path.rpartition(".")
        broke = break_once(monkeypatch, part(engine, owner), name, LOST)
        other = caller.generate((1,), 40, stop=UNTIL_40)
        lease = engine.sessions.acquire(away, "")
        event = caller.result(caller.score(TEXT[6:], lease=lease))
        engine.sessions.release(lease)
        assert broke.is_set()
        assert isinstance(event, Failed)
        assert generated(caller.result(other)).position == 41
        assert engine.check().result(60) == []
        expected = logprobs(caller.scored(caller.score(TEXT)))[6:]
        assert goes_on(caller, away, TEXT[6:]) == pytest.approx(expected, abs=2e-5)


def test_for_a_call_that_is_over_nobody_leaves(monkeypatch):
    """Its lease ends while its last step is made: it commits nothing, and needs no room."""
    with running_engine(MODEL, EngineLimits(**SIZES)) as caller:
        engine = caller.engine
        engine.memory.put_away = lambda snapshot: None
        idle = [begun(caller, TEXT[:6]) for _ in range(3)]
        view = engine.sessions.create(owner="", ttl_s=600, solve=Solve())
        lease = engine.sessions.acquire(view.session_id, "")
        memory, commit = engine._runner._memory, engine._runner._memory.commit

        def leaves(run, totals):
            engine.sessions.release(lease)
            return commit(run, totals)

        monkeypatch.setattr(memory, "commit", leaves)
        event = caller.result(caller.score(TEXT[:3], lease=lease))
        assert isinstance(event, Failed)
        assert isinstance(event.error, Cancelled)
        state = engine.snapshot()
        assert (state.resident_sessions, state.sessions_left_full) == (3, 0)
        assert all(engine.sessions.get(session, "").memory_bytes > 0 for session in idle)
