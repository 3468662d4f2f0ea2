"""Sessions outlive their server, leave the device and come back, and are answered as ever."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deqlm.v1 import common_pb2, generation_pb2
from server.store.blob import read_blob, write_blob
from tests.server.calls import FLUSH, TIGHT, Stubs, fails, to_input
from tests.server.live import LiveServer
from tests.server.test_store import resealed

NEAR = 2e-3
"""What tolerances of 1e-5 may do to a log-probability of these models in float32."""
TEXT = "It was a dark and stormy night; the rain fell in torrents, except at intervals."
IN_STORE, IN_MEMORY = common_pb2.KEPT_IN_STORE, common_pb2.KEPT_IN_MEMORY


def logprobs(answer: Any) -> list[float]:
    return [token.logprob for token in answer.tokens]


def whole(live_server: LiveServer, pieces: list[str]) -> list[list[float]]:
    """Log-probabilities of pieces scored one after another by a server that keeps everything."""
    stubs = Stubs(live_server.channel, owner="whole")
    session = stubs.create()
    found = [logprobs(stubs.score(piece, session_id=session, solver=TIGHT)) for piece in pieces]
    stubs.delete(session)
    return found


class TestRestart:
    def test_sessions_go_on(self, serve, live_server):
        expected = whole(live_server, [TEXT, TEXT])
        stubs = Stubs(serve().channel, owner="ann")
        session = stubs.create(ttl_s=500.0, solver=TIGHT)
        first = stubs.score(TEXT, session_id=session)
        assert first.kept == IN_STORE
        before = stubs.get(session)
        server = serve()
        stubs = Stubs(server.channel, owner="ann")
        after = stubs.get(session)
        for name in ("position", "totals", "ttl_s", "solver", "create_time", "model", "owner"):
            assert getattr(after, name) == getattr(before, name)
        assert after.memory_bytes == 0, "it was loaded before anybody asked"
        second = stubs.score(TEXT, session_id=session)
        assert logprobs(second) == pytest.approx(expected[1], abs=NEAR)
        assert second.session.scored_tokens == 2 * first.position
        # Only what was new was solved: the states came from the store.
        assert second.solver.solved_tokens == second.position - first.position
        assert server.metrics()['deqlm_session_returns_total{by="states",model="pieces"}'] == 1

    def test_owners_stay_apart(self, serve):
        session = Stubs(serve().channel, owner="ann").create()
        told = fails(lambda: Stubs(serve().channel, owner="bob").score("It", session_id=session))
        assert (told.code, told.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")

    def test_deleted_and_private_sessions_are_not_there(self, serve):
        server = serve()
        stubs = Stubs(server.channel)
        session = stubs.create()
        stubs.score(TEXT, session_id=session)
        stubs.delete(session)
        *_, last = stubs.stream(["It was ", FLUSH])
        assert last.kept == common_pb2.KEPT_UNSPECIFIED
        stubs = Stubs(serve().channel)
        assert fails(lambda: stubs.get(session)).code == "NOT_FOUND"
        assert serve().metrics()["deqlm_store_sessions"] == 0

    def test_expired_ones_are_dropped(self, serve, path):
        stubs = Stubs(serve().channel)
        session = stubs.create(ttl_s=1e-3)
        server = serve()
        assert fails(lambda: Stubs(server.channel).get(session)).code == "NOT_FOUND"
        server.run(server.server.stop())
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)

    def test_generations_and_streams_go_on(self, serve):
        stubs = Stubs(serve().channel)
        session = stubs.create(solver=TIGHT)
        stop = generation_pb2.StopOptions(max_tokens=5, ignore_eos=True)
        request = generation_pb2.GenerateRequest(
            prompt=to_input(TEXT), session_id=session, stop=stop
        )
        *_, last = stubs.generate(request)
        assert last.finished.kept == IN_STORE
        *_, streamed = stubs.stream([" and so on", FLUSH], session_id=session)
        assert streamed.kept == IN_STORE
        copy = stubs.fork(session)
        position = stubs.get(session).position
        assert position == streamed.committed_position == last.finished.position + 3
        stubs = Stubs(serve().channel)
        assert stubs.get(session).position == position
        one = stubs.score(TEXT, session_id=session)
        other = stubs.score(TEXT, session_id=copy.session_id)
        assert logprobs(one) == pytest.approx(logprobs(other), abs=NEAR)

    def test_candidates_behind_a_session_from_the_store(self, serve, live_server):
        stubs = Stubs(serve().channel)
        session = stubs.create(solver=TIGHT)
        stubs.score(TEXT, session_id=session)
        candidates = [to_input("of"), to_input("in the")]
        first = stubs.score(session_id=session, candidates=candidates)
        stubs = Stubs(serve().channel)
        again = stubs.score(session_id=session, candidates=candidates)
        for one, other in zip(first.candidates, again.candidates, strict=True):
            assert logprobs(one) == pytest.approx(logprobs(other), abs=NEAR)
        assert stubs.get(session).memory_bytes > 0

    def test_in_bfloat16_it_takes_less_and_is_near(self, serve, live_server, path):
        expected = whole(live_server, [TEXT, TEXT])
        stubs = Stubs(serve(state_format="bfloat16").channel)
        session = stubs.create(solver=TIGHT)
        stubs.score(TEXT, session_id=session)
        stubs = Stubs(serve(state_format="float32").channel)
        second = stubs.score(TEXT, session_id=session)
        assert second.solver.solved_tokens == len(second.tokens)
        assert logprobs(second) == pytest.approx(expected[1], abs=0.05)


class TestSolvedAgain:
    """States that cannot be used are solved again from the tokens."""

    def edit(self, path: Path, session: str, change: Callable[[bytes], bytes]) -> None:
        with sqlite3.connect(path) as db:
            (body,) = db.execute(
                "SELECT body FROM sessions WHERE session_id = ?", (session,)
            ).fetchone()
            db.execute("UPDATE sessions SET body = ? WHERE session_id = ?", (change(body), session))
        db.close()

    @pytest.mark.parametrize(
        ("how", "what"),
        [
            ("damaged", "score"),
            ("foreign", "score"),
            ("nan", "score"),
            ("format", "score"),
            ("rows", "generate"),
            ("missing", "generate"),
            ("missing", "candidates"),
        ],
    )
    def test_the_answer_is_the_same(self, serve, path, how, what, caplog):
        server = serve()
        stubs = Stubs(server.channel)
        sessions = [stubs.create(solver=TIGHT) for _ in range(2)]
        for session in sessions:
            stubs.score(TEXT, session_id=session)
        expected = self.act(stubs, sessions[0], what)
        server.run(server.server.stop())

        def change(body: bytes) -> bytes:
            snapshot = read_blob(body).snapshot
            states = snapshot.states
            if how == "damaged":
                at = body.index(states.data)
                return body[:at] + bytes(8) + body[at + 8 :]
            if how in ("format", "rows"):  # as another release may write them
                told = {"format": {"format": "float16"}, "rows": {"rows": states.rows - 1}}
                return resealed(body, {"states": told[how]})
            if how == "missing":
                return write_blob(replace(snapshot, states=None))
            if how == "foreign":
                return write_blob(replace(snapshot, fingerprint="another"))
            nan = replace(states, data=b"\xff" * len(states.data))
            return write_blob(replace(snapshot, states=nan))

        self.edit(path, sessions[1], change)
        server = serve()
        stubs = Stubs(server.channel)
        found = self.act(stubs, sessions[1], what)
        assert found == pytest.approx(expected, abs=NEAR)
        assert server.metrics()['deqlm_session_returns_total{by="tokens",model="pieces"}'] == 1
        is_told = f"session {sessions[1]} in sqlite:{path}: " in caplog.text
        assert is_told == (how in ("damaged", "format", "rows"))
        view = stubs.get(sessions[1])
        assert view.totals.scored_tokens == view.position
        assert view.memory_bytes > 0
        self.act(stubs, sessions[1], what)
        assert server.metrics()['deqlm_session_returns_total{by="tokens",model="pieces"}'] == 1

    def act(self, stubs: Stubs, session: str, what: str) -> list[float]:
        if what == "score":
            return logprobs(stubs.score("in the rain", session_id=session))
        if what == "candidates":
            answer = stubs.score(session_id=session, candidates=[to_input("of"), to_input("in")])
            return [lp for candidate in answer.candidates for lp in logprobs(candidate)]
        request = generation_pb2.GenerateRequest(
            session_id=session,
            sampling=generation_pb2.SamplingOptions(temperature=0),
            stop=generation_pb2.StopOptions(max_tokens=4, ignore_eos=True),
        )
        return [r.token.logprob for r in stubs.generate(request) if r.HasField("token")]

    def test_a_session_whose_tokens_are_damaged_is_lost_alone(self, serve, path):
        server = serve()
        stubs = Stubs(server.channel)
        lost, other = stubs.create(), stubs.create()
        for session in (lost, other):
            stubs.score(TEXT, session_id=session)
        server.run(server.server.stop())
        self.edit(path, lost, lambda body: body[:40] + b"?" + body[41:])
        stubs = Stubs(serve().channel)
        assert fails(lambda: stubs.score("It", session_id=lost)).reason == "SESSION_NOT_FOUND"
        assert stubs.score("It", session_id=other).position > 1


class TestEviction:
    """More sessions than the device has room for."""

    @pytest.mark.parametrize("store", ["memory", "file"])
    def test_the_one_used_longest_ago_makes_room(self, serve, live_server, store):
        expected = whole(live_server, [TEXT, TEXT])
        changes = {"session_store": "memory"} if store == "memory" else {}
        one = live_server.engine().session_bytes
        server = serve(resident_bytes=2 * one, **changes)
        stubs = Stubs(server.channel)
        sessions = [stubs.create(solver=TIGHT) for _ in range(6)]
        for session in sessions:
            stubs.score(TEXT, session_id=session)
        on_device = [stubs.get(session).memory_bytes > 0 for session in sessions]
        assert on_device == [False] * 4 + [True] * 2
        for session in sessions:
            second = stubs.score(TEXT, session_id=session)
            assert logprobs(second) == pytest.approx(expected[1], abs=NEAR)
            assert second.solver.solved_tokens == len(second.tokens)
        metrics = server.metrics()
        assert metrics['deqlm_resident_sessions{model="pieces"}'] == 2
        assert metrics['deqlm_sessions{model="pieces"}'] == 6
        assert metrics['deqlm_session_evictions_total{model="pieces",reason="budget"}'] >= 8
        assert metrics["deqlm_store_sessions"] >= 4

    def test_more_calls_at_once_than_room(self, serve, live_server):
        server = serve(resident_bytes=1)
        stubs = Stubs(server.channel)
        expected = whole(live_server, [TEXT, TEXT])
        sessions = [stubs.create(solver=TIGHT) for _ in range(5)]
        for piece in range(2):
            calls = [stubs.begin_score(TEXT, session_id=session) for session in sessions]
            for call in calls:
                found = logprobs(call.result())
                assert found == pytest.approx(expected[piece], abs=NEAR)
        engine = server.engine()
        assert engine.snapshot().slots_used == engine.sessions.holding() == 1

    def test_idle_ones_leave_by_time(self, serve):
        server = serve(resident_idle_s=0.05)
        stubs = Stubs(server.channel)
        session = stubs.create()
        stubs.score(TEXT, session_id=session)
        left = 'deqlm_session_evictions_total{model="pieces",reason="idle"}'
        while server.metrics()[left] == 0:  # the engine looks once a second
            pass
        assert stubs.get(session).memory_bytes == 0
        assert stubs.score("It", session_id=session).position > 1

    def test_forks_of_sessions_that_are_away(self, serve):
        server = serve(resident_bytes=1, session_store="memory")
        stubs = Stubs(server.channel)
        session, other = stubs.create(solver=TIGHT), stubs.create()
        stubs.score(TEXT, session_id=session)
        stubs.score(TEXT, session_id=other)
        assert stubs.get(session).memory_bytes == 0
        copy = stubs.fork(session).session_id
        one = stubs.score("in the rain", session_id=session)
        stubs.score(TEXT, session_id=other)
        two = stubs.score("in the rain", session_id=copy)
        assert logprobs(one) == pytest.approx(logprobs(two), abs=NEAR)
        assert one.position == two.position
