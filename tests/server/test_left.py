"""Sessions that a smaller ``max_sessions`` leaves in the store: whoever names one has it back."""

import time
from types import SimpleNamespace

import pytest

from deqlm.v1 import session_pb2
from tests.server.calls import TIGHT, TIMEOUT_S, Stubs, fails
from tests.server.test_store_edges import has
from tests.waiting import eventually

TEXT = "It was a dark night"
REFUSED = ("RESOURCE_EXHAUSTED", "SESSION_LIMIT")


def import_again(stubs, blob):
    request = session_pb2.ImportSessionRequest(blob=blob, idempotency_key="imported")
    answer = stubs.sessions.ImportSession(request, timeout=TIMEOUT_S, metadata=stubs.metadata)
    return answer.session.session_id


def export(stubs, session):
    request = session_pb2.ExportSessionRequest(session_id=session)
    answer = stubs.sessions.ExportSession(request, timeout=TIMEOUT_S, metadata=stubs.metadata)
    return answer.blob


def test_the_same_call_has_it_back_when_there_is_room(serve):
    """Made by a key, forked by one, imported by one, or just named: never an empty one instead."""
    stubs = Stubs(serve(max_sessions=8).channel, owner="ann")
    origin, filler = stubs.create(solver=TIGHT), stubs.create()
    stubs.score(TEXT, session_id=origin)
    blob = export(stubs, origin)
    ways = [
        lambda: stubs.create(idempotency_key="made", solver=TIGHT),
        lambda: stubs.fork(origin, idempotency_key="forked").session_id,
        lambda: import_again(stubs, blob),
        lambda: stubs.create(solver=TIGHT),
    ]
    left = [make() for make in ways]
    ways[3] = lambda: stubs.get(left[3]).session_id
    # What was written last comes last.
    held = {one: stubs.score(TEXT, session_id=one).position for one in left}

    small = serve(max_sessions=2)
    stubs = Stubs(small.channel, owner="ann")
    assert {one.session_id for one in stubs.list(page_size=100).sessions} == {origin, filler}
    for one, again in zip(left, ways, strict=True):
        for call in (again, lambda one=one: stubs.score("on", session_id=one)):
            told = fails(call)
            assert (told.code, told.reason) == REFUSED
        assert has(small, one)
    bob = Stubs(small.channel, owner="bob")
    assert fails(lambda: bob.get(left[3])).reason == "SESSION_NOT_FOUND"
    stubs.delete(filler)
    for one, again in zip(left, ways, strict=True):
        assert again() == one
        assert stubs.get(one).position == held[one]
        answer = stubs.score(" and so on", session_id=one)
        assert answer.solver.solved_tokens == len(answer.tokens), "it has not all that it held"
        held[one] = answer.position
        if one != left[-1]:
            stubs.delete(one)
            assert not has(small, one)
    stubs = Stubs(serve(max_sessions=8).channel, owner="ann")
    assert stubs.get(left[-1]).position == held[left[-1]]
    assert {one.session_id for one in stubs.list().sessions} == {origin, left[-1]}


def test_one_that_is_back_outlives_its_old_time(serve, monkeypatch):
    stubs = Stubs(serve(max_sessions=4).channel, owner="ann")
    filler, back, left = (stubs.create(idempotency_key=key, solver=TIGHT) for key in "abc")
    for one in (filler, back, left):
        stubs.score(TEXT, session_id=one)
    small = serve(max_sessions=1)
    stubs = Stubs(small.channel, owner="ann")
    stubs.delete(filler)
    assert stubs.create(idempotency_key="b") == back
    position = stubs.score("on", session_id=back).position
    assert small.metrics()["deqlm_store_sessions"] == 2
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 1e7)
    monkeypatch.setattr("server.left.time", later)
    eventually(lambda: not has(small, left))
    assert has(small, back)
    assert stubs.get(back).position == position
    monkeypatch.undo()
    stubs = Stubs(serve(max_sessions=4).channel, owner="ann")
    assert [one.session_id for one in stubs.list().sessions] == [back]
    assert stubs.get(back).position == position


def test_it_can_be_deleted_though_there_is_no_room(serve, tiny_models):
    """Also where its model is not served."""
    stubs = Stubs(serve(max_sessions=4).channel, owner="ann")
    first, left, other = (stubs.create(idempotency_key=key, solver=TIGHT) for key in "abc")
    for one in (first, left, other):
        stubs.score(TEXT, session_id=one)
    small = serve(max_sessions=1)
    bob = Stubs(small.channel, owner="bob")
    assert fails(lambda: bob.delete(left)).reason == "SESSION_NOT_FOUND"
    stubs = Stubs(small.channel, owner="ann")
    assert has(small, left)
    stubs.delete(left)
    assert not has(small, left)
    assert fails(lambda: stubs.get(left)).reason == "SESSION_NOT_FOUND"
    assert fails(lambda: stubs.delete(left)).reason == "SESSION_NOT_FOUND"
    stubs = Stubs(serve(model=(f"words={tiny_models / 'words'}",)).channel, owner="ann")
    stubs.delete(other)
    stubs = Stubs(serve(max_sessions=4).channel, owner="ann")
    assert [one.session_id for one in stubs.list().sessions] == [first]


@pytest.mark.parametrize("way", ["key", "name"])
def test_one_whose_time_has_passed_is_not_back(serve, monkeypatch, way):
    """Nobody has looked yet: the key makes a new one, the name finds none."""
    stubs = Stubs(serve(max_sessions=4).channel, owner="ann")
    filler, left = (stubs.create(idempotency_key=key, solver=TIGHT) for key in "ab")
    for one in (filler, left):
        stubs.score(TEXT, session_id=one)
    small = serve(max_sessions=1)
    monkeypatch.setattr("server.left.Left.expire", lambda self: None)
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 1e7)
    monkeypatch.setattr("server.left.time", later)
    stubs = Stubs(small.channel, owner="ann")
    stubs.delete(filler)
    if way == "key":
        assert stubs.create(idempotency_key="b", solver=TIGHT) == left
        assert stubs.get(left).position == 0
        assert has(small, left)
    else:
        assert fails(lambda: stubs.get(left)).reason == "SESSION_NOT_FOUND"
        assert not has(small, left)
