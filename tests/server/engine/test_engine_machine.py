"""The whole engine, jobs in any order: each answer is that of an engine with nothing else to do."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from server.engine.errors import Cancelled, SessionBusy
from server.engine.limits import EngineLimits
from server.engine.requests import Lease, Sampling, Stop
from server.engine.results import Drawn, Event, Failed, Generated, Scored
from server.engine.solve import Solve
from tests.server.engine.helpers import MODEL, NEAR, Caller, generated, logprobs, running_engine

LIMITS = EngineLimits(
    max_batch_tokens=24, max_running=4, window=5, max_sessions=8, prefix_cache=200
)
TOKENS = st.lists(st.integers(0, 39), min_size=1, max_size=12).map(tuple)
OWNERS = st.sampled_from(("ann", "bob"))


@dataclass
class History:
    """A session as the model knows it."""

    owner: str
    tokens: tuple[int, ...] = ()
    busy: bool = False


@dataclass
class Asked:
    """A job that is not known to have ended."""

    tokens: tuple[int, ...]
    before: tuple[int, ...]
    session_id: str | None
    lease: Lease | None
    draws: int = 0
    seed: int = 0
    cancelled: bool = field(default=False)


@pytest.fixture(scope="module")
def fresh() -> Iterator[Caller]:
    """An engine that does one thing at a time and shares nothing."""
    with running_engine(MODEL) as running:
        yield running


class Jobs(RuleBasedStateMachine):
    """Jobs are submitted, cancelled and waited for; sessions made, forked and deleted."""

    caller: Caller
    fresh: Caller

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, History] = {}
        self.open: dict[str, Asked] = {}

    @property
    def table(self):  # type: ignore[no-untyped-def]
        return self.caller.engine.sessions

    @precondition(lambda self: len(self.sessions) < 4)
    @rule(owner=OWNERS)
    def create(self, owner: str) -> None:
        view = self.table.create(owner=owner, ttl_s=600, solve=Solve())
        self.sessions[view.session_id] = History(owner)

    @precondition(lambda self: len(self.open) < 12)
    @rule(data=st.data(), tokens=TOKENS, draws=st.integers(0, 4), seed=st.integers(0, 3))
    def submit(self, data: st.DataObject, tokens: tuple[int, ...], draws: int, seed: int) -> None:
        """A score, or with ``draws`` a generation; on a session, or on none."""
        session_id = data.draw(st.sampled_from([None, *self.sessions]))
        history = None if session_id is None else self.sessions[session_id]
        lease, before, owner = None, (), "ann"
        if history is not None:
            before, owner = history.tokens, history.owner
            if history.busy:
                with pytest.raises(SessionBusy):
                    self.table.acquire(session_id, owner)
                return
            lease, history.busy = self.table.acquire(session_id, owner), True
        asked = Asked(tokens, before, session_id, lease, draws, seed)
        self.open[self.submit_to(self.caller, asked, tokens, lease, owner)] = asked

    def submit_to(
        self, caller: Caller, asked: Asked, tokens: tuple[int, ...], lease: Lease | None, owner: str
    ) -> str:
        if not asked.draws:
            return caller.score(tokens, lease=lease, owner=owner)
        stop, sampling = Stop(max_tokens=asked.draws), Sampling(seed=asked.seed)
        return caller.generate(
            tokens, asked.draws, lease=lease, owner=owner, stop=stop, sampling=sampling
        )

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.open)))
        self.open[job_id].cancelled = True
        self.caller.engine.cancel(job_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(list(self.open))))

    def finish(self, job_id: str) -> None:
        asked, events = self.open.pop(job_id), self.caller.events(job_id)
        drawn = tuple(event.token.token_id for event in events if isinstance(event, Drawn))
        if isinstance(events[-1], Failed):
            assert asked.cancelled
            assert isinstance(events[-1].error, Cancelled)
        else:
            self.check(asked, events[-1], drawn)
        if asked.lease is not None:
            self.give_back(asked, asked.before + asked.tokens + drawn, events[-1])

    def check(self, asked: Asked, event: Event, drawn: tuple[int, ...]) -> None:
        """Against the answer to the whole history in one call of the other engine."""
        job_id = self.submit_to(self.fresh, asked, asked.before + asked.tokens, None, "ann")
        events = self.fresh.events(job_id)
        if isinstance(event, Scored):
            expected = logprobs(events[-1])[len(asked.before) :]
            assert logprobs(event) == pytest.approx(expected, abs=5 * NEAR)
        else:
            assert drawn == tuple(e.token.token_id for e in events if isinstance(e, Drawn))
            assert generated(event).reason == generated(events[-1]).reason

    def give_back(self, asked: Asked, tokens: tuple[int, ...], event: Event) -> None:
        assert asked.session_id is not None
        assert asked.lease is not None
        history = self.sessions[asked.session_id]
        self.table.release(asked.lease)
        position = self.table.get(asked.session_id, history.owner).position
        assert len(asked.before) <= position <= len(tokens)
        if isinstance(event, Scored | Generated):
            assert position == len(tokens), "an answered call is in the session, whole"
        history.tokens, history.busy = tokens[:position], False

    @precondition(lambda self: 0 < len(self.sessions) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(list(self.sessions)))
        history = self.sessions[session_id]
        if history.busy:
            with pytest.raises(SessionBusy):
                self.table.fork(session_id, history.owner)
            return
        copy = self.table.fork(session_id, history.owner)
        assert copy.position == len(history.tokens)
        self.sessions[copy.session_id] = History(history.owner, history.tokens)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(list(self.sessions)))
        history = self.sessions[session_id]
        if history.busy:
            with pytest.raises(SessionBusy):
                self.table.delete(session_id, history.owner)
            return
        self.table.delete(session_id, history.owner)
        del self.sessions[session_id]

    def teardown(self) -> None:
        for job_id in list(self.open):
            self.finish(job_id)
        for session_id, history in self.sessions.items():
            self.table.delete(session_id, history.owner)
        # One more answer: the turn that ended the others is over then.
        assert isinstance(self.caller.result(self.caller.score((1,))), Scored)
        snapshot = self.caller.engine.snapshot()
        assert (snapshot.slots_used, snapshot.sessions) == (0, 0)
        assert (snapshot.waiting_jobs, snapshot.waiting_tokens) == (0, 0)


def test_each_answer_is_that_of_a_fresh_engine(fresh: Caller) -> None:
    with running_engine(MODEL, LIMITS) as caller:
        Jobs.caller, Jobs.fresh = caller, fresh
        run_state_machine_as_test(
            Jobs,
            settings=settings(
                max_examples=20,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
