"""Sessions over the wire against a plain model: a real server, two owners, any order of calls."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from deqlm.v1 import session_pb2
from tests.server.calls import TIGHT, TIMEOUT_S, Stubs, fails, to_input

OWNERS = ("ann the tester", "bob the tester")
IDS = st.lists(st.integers(3, 60), min_size=1, max_size=6)
MOST = 5


@dataclass
class Expected:
    """A session: whose it is, and what it holds."""

    owner: str
    tokens: list[int]


class Calls(RuleBasedStateMachine):
    """Every call on sessions, right and wrong ones."""

    stubs: dict[str, Stubs]

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, Expected] = {}
        self.gone: list[str] = []

    def pick(self, data: st.DataObject) -> tuple[str, Stubs, Expected | None]:
        """A session and somebody's stubs; None where that must be told as not found."""
        session_id = data.draw(st.sampled_from([*self.live, *self.gone, "made-up"]))
        expected = self.live.get(session_id)
        owner = data.draw(st.sampled_from(OWNERS))
        if expected is not None and data.draw(st.integers(0, 3)):
            owner = expected.owner
        mine = expected is not None and expected.owner == owner
        return session_id, self.stubs[owner], expected if mine else None

    @precondition(lambda self: len(self.live) < MOST)
    @rule(owner=st.sampled_from(OWNERS))
    def create(self, owner: str) -> None:
        self.live[self.stubs[owner].create(solver=TIGHT)] = Expected(owner, [])

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        session_id, stubs, expected = self.pick(data)
        if expected is None:
            assert fails(lambda: stubs.get(session_id)).code == "NOT_FOUND"
            return
        view = stubs.get(session_id)
        assert view.position == len(expected.tokens)
        assert view.owner == expected.owner
        assert not view.busy

    @rule(owner=st.sampled_from(OWNERS), size=st.integers(1, 3))
    def list_them(self, owner: str, size: int) -> None:
        found, token = [], ""
        while True:
            page = self.stubs[owner].list(page_size=size, page_token=token)
            assert len(page.sessions) <= size
            found += [session.session_id for session in page.sessions]
            if not (token := page.next_page_token):
                break
        assert sorted(found) == sorted(k for k, e in self.live.items() if e.owner == owner)

    @rule(data=st.data(), ids=IDS)
    def score(self, data: st.DataObject, ids: list[int]) -> None:
        session_id, stubs, expected = self.pick(data)
        if expected is None:
            failure = fails(lambda: stubs.score(ids, session_id=session_id))
            assert failure.code == "NOT_FOUND"
            return
        answer = stubs.score(ids, session_id=session_id)
        expected.tokens += ids
        assert answer.position == len(expected.tokens)
        assert answer.session.scored_tokens == len(expected.tokens)
        whole = stubs.score(expected.tokens, solver=TIGHT)
        sums = (answer.session.logprob_sum, whole.call.logprob_sum)
        assert sums[0] == pytest.approx(sums[1], abs=5e-3)

    @rule(data=st.data(), ids=IDS)
    def rescore(self, data: st.DataObject, ids: list[int]) -> None:
        """Candidates leave the session as it is."""
        session_id, stubs, expected = self.pick(data)
        if expected is not None:
            stubs.score(session_id=session_id, candidates=[to_input(ids), to_input(ids[:1])])
            assert stubs.get(session_id).position == len(expected.tokens)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """What is refused changes nothing."""
        session_id, stubs, _ = self.pick(data)
        failure = fails(lambda: stubs.score([10**6], session_id=session_id))
        assert failure.code in ("INVALID_ARGUMENT", "NOT_FOUND")

    @precondition(lambda self: len(self.live) < MOST)
    @rule(data=st.data(), exported=st.booleans())
    def copy(self, data: st.DataObject, exported: bool) -> None:
        """By a fork, or as bytes that become a session again."""
        session_id, stubs, expected = self.pick(data)
        more = {"timeout": TIMEOUT_S, "metadata": stubs.metadata}
        export = session_pb2.ExportSessionRequest(session_id=session_id)
        if expected is None:
            assert fails(lambda: stubs.fork(session_id)).code == "NOT_FOUND"
            failure = fails(lambda: stubs.sessions.ExportSession(export, **more))
            assert failure.code == "NOT_FOUND"
            return
        if exported:
            blob = stubs.sessions.ExportSession(export, **more).blob
            request = session_pb2.ImportSessionRequest(blob=blob)
            view = stubs.sessions.ImportSession(request, **more).session
        else:
            view = stubs.fork(session_id)
        assert view.position == len(expected.tokens)
        self.live[view.session_id] = Expected(expected.owner, [*expected.tokens])

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        session_id, stubs, expected = self.pick(data)
        if expected is None:
            assert fails(lambda: stubs.delete(session_id)).code == "NOT_FOUND"
            return
        stubs.delete(session_id)
        del self.live[session_id]
        self.gone.append(session_id)

    def teardown(self) -> None:
        for session_id, expected in self.live.items():
            self.stubs[expected.owner].delete(session_id)
        for stubs in self.stubs.values():
            assert not stubs.list().sessions


def test_a_server_keeps_sessions_as_a_dictionary_would(live_server) -> None:
    Calls.stubs = {owner: Stubs(live_server.channel, owner=owner) for owner in OWNERS}
    run_state_machine_as_test(
        Calls,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    snapshot = live_server.engine().snapshot()
    assert snapshot.slots_used == live_server.engine().sessions.holding()
