"""A call with a key is done once, however often it is sent."""

import threading
from dataclasses import replace

import pytest

from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2
from server.attempts import from_answer, to_answer
from server.errors import AnswerNotKept
from server.store.keeper import Keeper
from tests.server.calls import ENDLESS, Stubs, fails, to_input
from tests.server.test_contention import wait_for

TEXT = "It was a dark and stormy night."


@pytest.fixture
def server(make_server, tmp_path):
    return make_server(session_store=f"sqlite:{tmp_path / 'sessions.db'}")


@pytest.fixture
def stubs(server):
    return Stubs(server.channel, owner="ann")


def generation(session, key, **changes):
    stop = generation_pb2.StopOptions(max_tokens=6, ignore_eos=True)
    fields = {"prompt": to_input("It"), "stop": stop, **changes}
    return generation_pb2.GenerateRequest(session_id=session, idempotency_key=key, **fields)


class TestScore:
    def test_the_answer_is_the_same_and_nothing_is_done_twice(self, stubs):
        session = stubs.create()
        first = stubs.score(TEXT, session_id=session, idempotency_key="a", top_k=2)
        again = stubs.score(TEXT, session_id=session, idempotency_key="a", top_k=2)
        assert again == first
        assert stubs.get(session).position == first.position
        other = stubs.score(TEXT, session_id=session, idempotency_key="b", top_k=2)
        assert other.position == 2 * first.position

    def test_without_a_key_it_is_done_again(self, stubs):
        session = stubs.create()
        stubs.score([5], session_id=session)
        assert stubs.score([5], session_id=session).position == 2

    def test_a_key_belongs_to_one_request(self, stubs):
        session = stubs.create()
        stubs.score([5], session_id=session, idempotency_key="a")
        told = fails(lambda: stubs.score([6], session_id=session, idempotency_key="a"))
        assert (told.code, told.reason) == ("INVALID_ARGUMENT", "KEY_REUSED")
        assert told.fields == ("idempotency_key",)
        assert stubs.get(session).position == 1

    def test_keys_of_two_sessions_are_apart(self, stubs):
        one, other = stubs.create(), stubs.create()
        for session in (one, other):
            stubs.score([5, 6], session_id=session, idempotency_key="a")
            assert stubs.get(session).position == 2

    def test_a_call_that_failed_may_be_sent_again(self, stubs):
        session = stubs.create()
        strict = common_pb2.SolverOptions(
            tol=1e-30, max_nfe=3, policy=common_pb2.BUDGET_POLICY_ERROR
        )
        for _ in range(2):
            told = fails(
                lambda: stubs.score([5], session_id=session, idempotency_key="a", solver=strict)
            )
            assert told.reason == "UNCONVERGED"
        assert stubs.get(session).position == 0

    def test_one_that_is_under_way_is_waited_for(self, server, stubs):
        session = stubs.create()
        blocker = stubs.begin_score([7] * 3000, solver=ENDLESS)
        fields = {"session_id": session, "idempotency_key": "a"}
        with_key = [stubs.begin_score([5] * 30, **fields) for _ in range(3)]
        told = fails(lambda: stubs.score([6], session_id=session, idempotency_key="a"))
        assert told.reason == "KEY_REUSED"
        blocker.cancel()
        answers = [call.result() for call in with_key]
        assert answers[0] == answers[1] == answers[2]
        assert stubs.get(session).position == 30

    def test_who_follows_one_that_is_late_has_it_done(self, make_server, monkeypatch):
        monkeypatch.setattr("server.engine.rates._LEAST_S", float("inf"))  # nothing is foretold
        server = make_server(max_running=1)
        stubs = Stubs(server.channel, owner="ann")
        session, blocker = stubs.create(), stubs.begin_score([7] * 3000, solver=ENDLESS)
        wait_for(lambda: server.engine().snapshot().running_jobs == 1)
        request = scoring_pb2.ScoreRequest(
            input=to_input([5] * 30), session_id=session, idempotency_key="a"
        )
        first = stubs.scoring.Score.future(request, timeout=5.0, metadata=stubs.metadata)
        wait_for(lambda: server.engine().snapshot().waiting_jobs == 1)
        follower = stubs.begin_score([5] * 30, session_id=session, idempotency_key="a")
        wait_for(lambda: server.server._guard.running == 3)
        assert not first.done()
        assert fails(first.result).code == "DEADLINE_EXCEEDED"
        assert not follower.done()
        blocker.cancel()
        assert follower.result().position == stubs.get(session).position == 30

    def test_it_goes_on_without_its_client(self, server, stubs):
        session = stubs.create()
        call = stubs.begin_score([5] * 400, session_id=session, idempotency_key="a")
        pause = threading.Event()
        while server.engine().snapshot().running_jobs == 0 and not call.done():
            pause.wait(0.002)
        call.cancel()
        answer = stubs.score([5] * 400, session_id=session, idempotency_key="a")
        assert answer.position == stubs.get(session).position == 400

    def test_an_answer_too_long_to_be_kept(self, make_server):
        stubs = Stubs(make_server(answer_bytes=100).channel)
        session = stubs.create()
        stubs.score(TEXT, session_id=session, idempotency_key="a")
        told = fails(lambda: stubs.score(TEXT, session_id=session, idempotency_key="a"))
        assert (told.code, told.reason) == ("FAILED_PRECONDITION", "ANSWER_NOT_KEPT")
        assert stubs.get(session).position > 0

    def test_old_answers_make_room(self, stubs):
        session = stubs.create()
        for number in range(9):
            stubs.score([5], session_id=session, idempotency_key=f"{number}")
        assert stubs.score([5], session_id=session, idempotency_key="8").position == 9
        assert stubs.score([5], session_id=session, idempotency_key="1").position == 2
        assert stubs.score([5], session_id=session, idempotency_key="0").position == 10

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({}, "empty for a call that changes no session"),
            ({"session_id": "x", "candidates": [to_input([1])]}, "empty for a call that changes"),
            ({"session_id": "x", "idempotency_key": "k" * 129}, "at most 128 bytes long, got 129"),
        ],
    )
    def test_where_a_key_means_nothing(self, stubs, fields, problem):
        if "session_id" in fields:
            fields = {**fields, "session_id": stubs.create()}
        told = fails(lambda: stubs.score([5], **{"idempotency_key": "a", **fields}))
        assert told.fields == ("idempotency_key",)
        assert problem in told.message


@pytest.mark.parametrize("data", [b"\x01", b"\x03\x00\x00\x00\xff\xff\xff"])
def test_a_kept_answer_that_is_none_is_not_kept(data):
    request = scoring_pb2.ScoreRequest(idempotency_key="a")
    whole = to_answer("a", request, [scoring_pb2.ScoreResponse(session_id="s")])
    assert from_answer(whole, request, scoring_pb2.ScoreResponse)[0].session_id == "s"
    with pytest.raises(AnswerNotKept):
        from_answer(replace(whole, data=data), request, scoring_pb2.ScoreResponse)


class TestGenerate:
    def test_all_responses_are_sent_again(self, stubs):
        session = stubs.create()
        first = list(stubs.generate(generation(session, "a")))
        again = list(stubs.generate(generation(session, "a")))
        assert again == first
        assert stubs.get(session).position == first[-1].finished.position == 7

    def test_one_that_lost_its_client_is_followed(self, stubs):
        session = stubs.create()
        stop = generation_pb2.StopOptions(max_tokens=200, ignore_eos=True)
        request = generation(session, "a", stop=stop)
        lost = stubs.generate(request)
        assert next(lost).HasField("started")
        seen = next(lost)
        lost.cancel()
        responses = list(stubs.generate(request))
        assert responses[1] == seen
        assert sum(r.HasField("token") for r in responses) == 200
        assert stubs.get(session).position == 201

    def test_a_key_needs_a_session(self, stubs):
        request = generation_pb2.GenerateRequest(prompt=to_input("It"), idempotency_key="a")
        assert fails(lambda: list(stubs.generate(request))).fields == ("idempotency_key",)


def test_answers_outlive_the_server(make_server, tmp_path):
    store = {"session_store": f"sqlite:{tmp_path / 'sessions.db'}"}
    server = make_server(**store)
    stubs = Stubs(server.channel)
    session = stubs.create(idempotency_key="new")
    score = stubs.score(TEXT, session_id=session, idempotency_key="a")
    tokens = list(stubs.generate(generation(session, "b")))
    server.run(server.server.stop(grace_s=0.0))
    stubs = Stubs(make_server(**store).channel)
    assert stubs.create(idempotency_key="new") == session
    assert list(stubs.generate(generation(session, "b"))) == tokens
    assert stubs.score(TEXT, session_id=session, idempotency_key="a") == score
    assert stubs.get(session).position == tokens[-1].finished.position


def test_a_session_or_a_fork_is_made_once(stubs):
    one = stubs.create(idempotency_key="a")
    assert stubs.create(idempotency_key="a") == one
    assert stubs.create(idempotency_key="b") != one
    bob = Stubs(stubs.channel, owner="bob")
    assert bob.create(idempotency_key="a") != one
    copy = stubs.fork(one, idempotency_key="a").session_id
    assert copy != one
    assert stubs.fork(one, idempotency_key="a").session_id == copy


def test_a_call_whose_client_left_before_it_was_stored_is_not_done_twice(
    server, stubs, monkeypatch
):
    session = stubs.create()
    reached, go_on = threading.Event(), threading.Event()
    real = Keeper._write

    def slow(keeper, due):
        reached.set()
        assert go_on.wait(60)
        return real(keeper, due)

    monkeypatch.setattr(Keeper, "_write", slow)
    call = stubs.begin_score([5, 6], session_id=session, idempotency_key="a")
    assert reached.wait(60)
    call.cancel()
    again = stubs.begin_score([5, 6], session_id=session, idempotency_key="a")
    go_on.set()
    assert again.result().position == stubs.get(session).position == 2
