"""Faults inside the engine, caused for real: who is told, what is kept, and that all adds up."""

import gc
import itertools
import random
import threading
import time

import pytest
import torch

from server.engine.errors import Cancelled, EngineFailed, OutOfMemory, SessionNotFound, TooLate
from server.engine.limits import EngineLimits
from server.engine.rates import Rate
from server.engine.results import Drawn, Failed, Generated, Scored
from server.engine.sessions import SessionTable
from server.engine.slots import SlotPool
from server.engine.snapshots import unpack_tokens
from server.engine.solve import Solve
from server.engine.work import Work
from tests.server.engine.helpers import MODEL, TEXT, generated, logprobs, running_engine

LIMITS = EngineLimits(max_batch_tokens=24, max_running=4, window=5, prefix_cache=200)

# (part of the engine, method): every step that is one job's own.
OWN_STEPS = [
    ("_runner._memory", "take_base"),
    ("_runner._memory", "commit"),
    ("_runner._memory", "keep"),
    ("_runner._runs", "start"),
    ("_runner._runs", "_continue"),
    ("_slab", "load"),
    ("_slab", "save"),
    ("_runner._sharing", "start"),
    ("_runner._answers", "_finish_score"),
    ("_runner._answers", "_answer"),
    ("sessions", "commit"),
]


def part(engine, path):
    for name in path.split("."):
        engine = getattr(engine, name)
    return engine


def break_once(monkeypatch, owner, name, error):
    """One call raises, before it does anything; an event tells that it did."""
    real, calls, broke = getattr(owner, name), itertools.count(), threading.Event()

    def breaks(*args, **kwargs):
        if next(calls) == 0:
            broke.set()
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaks)
    return broke


ERRORS = [(RuntimeError("lost"), EngineFailed), (torch.OutOfMemoryError("full"), OutOfMemory)]


@pytest.mark.parametrize(("error", "told"), ERRORS, ids=["defect", "memory"])
@pytest.mark.parametrize(("path", "name"), OWN_STEPS, ids=[n for _, n in OWN_STEPS])
def test_what_breaks_in_one_job_ends_that_job_alone(path, name, error, told, monkeypatch):
    with running_engine(MODEL, LIMITS) as caller, caller.session() as lease:
        before = caller.scored(caller.score((1, 2), lease=lease)).session
        others = [caller.generate((1,), 12, owner="bob") for _ in range(2)]
        for other in others:
            caller.open[other].get(timeout=60)  # they have begun
        broke = break_once(monkeypatch, part(caller.engine, path), name, error)
        candidates = ((5,), (6,)) if name == "keep" else ()
        event = caller.result(caller.score((3, 4), lease=lease, candidates=candidates))
        assert broke.is_set()
        # A neighbour may have met it first, and then it is that one alone.
        ends = [event, *(caller.events(other)[-1] for other in others)]
        failed = [end for end in ends if isinstance(end, Failed)]
        assert [type(end.error) for end in failed] == [told]
        after = caller.engine.sessions.view(lease)
        is_kept = event is not failed[0]  # all of the call, or nothing of it
        assert after.position == before.position + (2 if is_kept and name != "keep" else 0)
        assert isinstance(caller.result(caller.score((3, 4), lease=lease)), Scored)
        assert caller.engine.check().result(60) == []


@pytest.mark.parametrize("path", ["_runner._sharing.end", "_runner._sharing.forget"])
@pytest.mark.parametrize("kind", ["score", "generate"])
def test_what_breaks_after_the_commit_does_not_deny_it(kind, path, monkeypatch, caplog):
    """The session has moved on: the answer comes, and tells where it is."""
    with running_engine(MODEL, LIMITS) as caller, caller.session() as lease:
        before = caller.scored(caller.score((1, 2), lease=lease)).session
        owner, _, name = path.rpartition(".")
        broke = break_once(monkeypatch, part(caller.engine, owner), name, RuntimeError("lost"))
        if kind == "score":
            event = caller.scored(caller.score((3, 4), lease=lease))
        else:
            event = generated(caller.result(caller.generate((3,), 4, lease=lease)))
        assert broke.is_set()
        assert "did not end well" in caplog.text
        after = caller.engine.sessions.view(lease)
        assert event.position == event.session.position == after.position > before.position
        assert caller.engine.check().result(60) == []
        again = caller.scored(caller.score((7, 8), lease=lease))
        tokens = unpack_tokens(caller.engine.capture(lease.session_id).result(60).tokens)
        fresh = caller.scored(caller.score(tuple(tokens)))
        assert logprobs(again) == pytest.approx(logprobs(fresh)[-2:], abs=2e-5)


def test_where_memory_runs_out_kept_solutions_make_room(monkeypatch):
    with running_engine(MODEL, LIMITS) as caller:
        caller.scored(caller.score(TEXT))
        assert caller.engine.snapshot().prefix_tokens > 0

        def call(*_):
            return torch.empty(1 << 60)  # what the allocator itself says to too much

        monkeypatch.setattr(caller.engine._batch, "call", call)
        event = caller.result(caller.score((1, 2)))
        monkeypatch.undo()
        assert isinstance(event, Failed)
        assert isinstance(event.error, OutOfMemory)
        caller.engine.check().result(60)  # a turn later, when room is made
        assert caller.engine.snapshot().prefix_tokens == 0
        assert isinstance(caller.result(caller.score((1, 2))), Scored)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["_kept_z", "_kept_key", "_kept_value"])
def test_a_session_whose_memory_holds_no_numbers_is_solved_again(where, bad, caplog):
    with (
        running_engine(MODEL, LIMITS) as caller,
        caller.session() as sick,
        caller.session() as well,
    ):
        for lease in (sick, well):
            caller.scored(caller.score(TEXT[:9], lease=lease))
        good = caller.scored(caller.score(TEXT))
        slot = caller.engine.sessions.hold(sick.session_id)
        getattr(caller.engine._slab, where)[slot].fill_(bad)
        caller.engine._slots.release(slot)
        jobs = [caller.score(TEXT[9:], lease=lease) for lease in (sick, well)]
        for job in jobs:
            event = caller.scored(job)
            assert logprobs(event) == pytest.approx(logprobs(good)[9:], abs=2e-5)
            assert event.stats.nonfinite_tokens == 0
            is_sick = event.session.session_id == sick.session_id
            assert event.stats.repaired_tokens == (9 if is_sick else 0)
            assert event.session.repairs == int(is_sick)
        assert caller.engine.snapshot().sessions_repaired == 1
        later = caller.scored(caller.score((1,), lease=sick))
        assert (later.stats.repaired_tokens, later.session.repairs) == (0, 1)
        assert f"session {sick.session_id}: its memory holds no numbers" in caplog.text
        assert well.session_id not in caplog.text
        assert caller.engine.snapshot().sessions_from_tokens == 1


def test_cancels_race_completion_and_eviction():
    """However they meet, no slot is freed twice, none is lost, and sessions stay whole."""
    draw = random.Random(7)
    limits = EngineLimits(
        max_batch_tokens=24, max_running=4, window=5, max_sessions=4, resident_bytes=1
    )
    with running_engine(MODEL, limits) as caller:
        engine, kept = caller.engine, {}
        engine.memory.put_away = lambda snapshot: kept.__setitem__(snapshot.session_id, snapshot)
        ended: set[type] = set()
        for turn in range(120):
            views = [engine.sessions.create(owner="", ttl_s=60, solve=Solve()) for _ in range(3)]
            leases = [engine.sessions.acquire(view.session_id, "") for view in views]
            jobs = [caller.score(TEXT[:8], lease=lease) for lease in leases]
            time.sleep(draw.random() * 0.02)
            engine.cancel(jobs[turn % 3])
            engine.sessions.release(leases[turn % 3])  # its caller is gone already
            engine.cancel(jobs[turn % 3])
            events = [caller.result(job) for job in jobs]
            ended |= {type(event) for event in events}
            for event in events:
                assert isinstance(event, Scored) or isinstance(event.error, Cancelled)
            for lease, view in zip(leases, views, strict=True):
                engine.sessions.release(lease)
                engine.sessions.delete(view.session_id, "")
            if turn % 10 == 0:
                assert engine.check().result(60) == []
        assert ended == {Scored, Failed}


def test_a_slot_cannot_be_freed_twice():
    pool = SlotPool(2)
    slot = pool.acquire()
    pool.release(slot)
    with pytest.raises(AssertionError, match="is free"):
        pool.release(slot)
    assert {pool.acquire(), pool.acquire()} == {0, 1}
    assert pool.acquire() is None


def test_a_clock_that_is_set_back_or_forward_changes_no_life():
    wall, now = [1_000_000.0], [50.0]
    table = SessionTable(
        SlotPool(4),
        max_sessions=4,
        session_bytes=1,
        wall=lambda: wall[0],
        monotonic=lambda: now[0],
    )
    view = table.create(owner="", ttl_s=100, solve=Solve())
    for shift in (-500_000.0, 900_000.0):
        wall[0] += shift
        now[0] += 60
        lease = table.acquire(view.session_id, "")
        table.release(lease)
        seen = table.get(view.session_id, "")
        assert seen.create_time <= seen.last_used_time
        assert seen.expire_time == seen.last_used_time + 100
    now[0] += 101
    with pytest.raises(SessionNotFound):
        table.get(view.session_id, "")


def test_deadlines_at_every_stage():
    """Queued, with its prompt, between candidates, amid drawing: each ends, and holds nothing."""
    limits = EngineLimits(max_batch_tokens=8, max_running=2, window=2)
    endless = Solve(tol=1e-30, max_nfe=100_000)
    with running_engine(MODEL, limits) as caller, caller.session() as lease:
        soon = time.monotonic() + 0.3
        jobs = [
            caller.score((1,) * 200, solve=endless, deadline=soon),
            caller.score((1, 2), candidates=((3,) * 90,) * 5, solve=endless, deadline=soon),
            caller.generate((1,), 100_000, lease=lease, deadline=soon, solve=endless),
            caller.score((1, 2), deadline=soon),
        ]
        for job in jobs:
            event = caller.events(job)[-1]
            assert type(event.error).__name__ == "DeadlineExceeded"
        drawing = caller.generate((1,), 100_000, lease=lease, deadline=time.monotonic() + 0.5)
        *before, last = caller.events(drawing)
        assert any(isinstance(event, Drawn) for event in before)
        assert type(last.error).__name__ == "DeadlineExceeded"
        assert caller.engine.sessions.view(lease).position == 0


def test_a_job_that_would_come_too_late_is_refused_at_once():
    limits = EngineLimits(max_batch_tokens=8, max_running=1, window=2)
    with running_engine(MODEL, limits) as caller:
        busy = caller.generate((1,), 4000)
        for _ in range(200):
            caller.open[busy].get(timeout=60)
        waiting = caller.score((1, 2), owner="bob")
        while caller.engine._desk.forecast.foretell(1, 0) is None:
            caller.open[busy].get(timeout=60)
        begun = time.thread_time()  # others on the machine do not count
        with pytest.raises(TooLate, match="deadline must be at least") as caught:
            caller.score((1,) * 50, owner="bob", deadline=time.monotonic() + 0.01)
        assert time.thread_time() - begun < 0.01
        assert 0.1 <= caught.value.retry_after_s <= 30
        later = caller.score((1, 2), owner="bob", deadline=time.monotonic() + 3600)
        caller.engine.cancel(busy)
        assert isinstance(caller.result(waiting), Scored)
        assert isinstance(caller.result(later), Scored)
        while not isinstance(caller.open[busy].get(timeout=60), Failed | Generated):
            pass


def test_a_rate_is_that_of_the_last_seconds():
    rate = Rate()
    assert rate.per_s is None
    for _ in range(100):
        rate.note(10, 0.1)
    assert rate.per_s == pytest.approx(100)
    for _ in range(300):
        rate.note(1, 0.1)
    assert rate.per_s == pytest.approx(10, rel=0.1)


def test_what_is_over_needs_no_garbage_collector():
    """A full collection would find it, and nobody would be answered meanwhile."""
    with running_engine(MODEL, LIMITS) as caller:
        gc.disable()
        try:
            ids = [caller.score(TEXT[:6], candidates=(TEXT[6:8],)) for _ in range(4)]
            ids += [caller.generate(TEXT[:4], 5) for _ in range(4)]
            ids.append(caller.score(TEXT[:9], deadline=time.monotonic()))
            for job_id in ids:
                caller.result(job_id)
            for _ in range(2):  # the turn that ended the last one is over then
                caller.engine.check().result(timeout=60)
            works = [thing for thing in gc.get_objects() if type(thing) is Work]
            assert not [work for work in works if work.job.job_id in ids]
        finally:
            gc.enable()
