"""Queue, places and rows together, as the engine drives them: nobody lost, nothing leaked."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.admission import Admission, Places
from server.engine.costs import CostCurve
from server.engine.errors import QueueFull
from server.engine.fair import PRIORITY_WEIGHTS
from server.engine.requests import ScoreJob
from server.engine.scheduler import Scheduler, Sequence
from server.engine.work import Work

MAX_QUEUE, MAX_QUEUE_TOKENS = 8, 60
CURVE = CostCurve.measured([(1, 9e-3), (4, 8e-3), (8, 1e-2), (16, 1.4e-2), (32, 2.4e-2)])
WEIGHT = 2 + max(PRIORITY_WEIGHTS) / min(PRIORITY_WEIGHTS)
"""A member of a group has its turn within so many turns for each member (``fair.Group``)."""


@dataclass(eq=False)
class Request:
    """A request as the model knows it.

    Attributes:
        work: in the queue.
        draws: whether it is a generation.
        passed: turns others had at the queue while it was the first of its own.
        sequence: once it runs.
        missed: calls in a row that it had no row in.
        to_draw: tokens that it has yet to draw.
    """

    work: Work
    draws: bool
    passed: int = 0
    sequence: Sequence | None = None
    missed: int = 0
    to_draw: int = 3


@dataclass
class Most:
    """The most members that groups ever had: owners, requests of one, of the queue's owners."""

    owners: int = 1
    requests: int = 1
    waiting: int = 1

    def note(self, waiting: list[Request], running: list[Request]) -> None:
        """Takes the present numbers in."""
        owned = Counter(request.work.job.owner for request in running)
        self.owners = max(self.owners, len(owned))
        self.requests = max(self.requests, *owned.values(), 0)
        self.waiting = max(self.waiting, len({request.work.job.owner for request in waiting}))


@dataclass
class Sizes:
    """Of a scheduler."""

    max_running: int
    extra: int
    resting: int
    window: int
    costs: CostCurve | None = field(default=None)

    @property
    def most(self) -> int:
        """Rows of a call at most."""
        return self.max_running + self.extra


SIZES = st.builds(
    Sizes,
    st.integers(1, 6),
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(1, 6),
    st.sampled_from((None, CURVE)),
)


class Turns(RuleBasedStateMachine):
    """Requests come, are cancelled, let in, solved, guessed at and end, in any order."""

    @initialize(sizes=SIZES)
    def begin(self, sizes: Sizes) -> None:
        self.sizes, self.places = sizes, Places(sizes.max_running)
        self.admission = Admission(max_queue=MAX_QUEUE, max_queue_tokens=MAX_QUEUE_TOKENS)
        self.scheduler = Scheduler(
            max_batch_tokens=sizes.most,
            max_running=sizes.max_running,
            window=sizes.window,
            max_rows=sizes.most + sizes.resting,
            costs=sizes.costs,
        )
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.ended = self.submitted = 0
        self.most = Most()

    @rule(
        owner=st.sampled_from("abc"),
        priority=st.integers(0, 2),
        length=st.integers(1, 25),
        draws=st.booleans(),
    )
    def submit(self, owner: str, priority: int, length: int, draws: bool) -> None:
        job = ScoreJob(
            job_id="",
            tokens=tuple(range(length)),
            sink=lambda _: None,
            owner=owner,
            priority=priority,
        )
        request = Request(Work(job, submitted=0.0), draws)
        tokens = sum(other.work.size for other in self.waiting)
        too_many = len(self.waiting) >= MAX_QUEUE
        if too_many or (self.waiting and tokens + length > MAX_QUEUE_TOKENS):
            with pytest.raises(QueueFull, match="requests" if too_many else "tokens"):
                self.admission.put(request.work)
            return
        self.admission.put(request.work)
        self.waiting.append(request)
        self.submitted += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_waiting(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        request.work.finished = True
        self.admission.drop_finished()
        self.waiting.remove(request)
        self.ended += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.running)))

    def end(self, request: Request) -> None:
        assert request.sequence is not None
        self.scheduler.remove(request.sequence)
        assert not request.sequence.rows
        self.running.remove(request)
        self.ended += 1

    @rule()
    def admit(self) -> None:
        """Lets in whoever may come, one after another."""
        while self.scheduler.has_room and self.admit_one():
            self.most.note(self.waiting, self.running)

    def admit_one(self) -> bool:
        self.most.note(self.waiting, self.running)
        owned = Counter(request.work.job.owner for request in self.running)
        assert self.scheduler.running_of == owned
        free = {owner for owner in "abc" if self.places.open_to(owner, owned)}
        first: dict[tuple[str, int], Request] = {}
        for request in self.waiting:
            first.setdefault((request.work.job.owner, request.work.job.priority), request)
        able = [request for (owner, _), request in first.items() if owner in free]
        work = self.admission.take(lambda owner: owner in free)
        if work is None:
            assert not able, "there is room, and nobody was let in"
            return False
        (request,) = (request for request in able if request.work is work)
        self.check_turns(request, able)
        self.waiting.remove(request)
        self.running.append(request)
        request.sequence = Sequence(
            slot=0,
            start=0,
            inputs=list(work.tokens),
            owner=work.job.owner,
            request=id(work),
            priority=work.job.priority,
            draws=request.draws,
        )
        self.scheduler.add(request.sequence)
        return True

    def check_turns(self, taken: Request, able: list[Request]) -> None:
        """Who could have been let in and was not is so within the bound."""
        for other in able:
            if other is not taken:
                other.passed += 1
                bound = self.most.waiting * WEIGHT * len(PRIORITY_WEIGHTS) * WEIGHT
                assert other.passed <= bound, "it waits for ever"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        """One call of f, after which some tokens are accepted, drawn and guessed."""
        before = {request: _standing(request) for request in self.running}
        entered = Counter(entry.sequence for entry in self.scheduler.enter())
        for request in list(self.running):
            sequence = request.sequence
            assert sequence is not None
            assert sequence.entered == before[request].entered + entered[sequence]
            self.check_granted(request, before[request])
        for request in list(self.running):
            assert request.sequence is not None
            if request.sequence.granted:
                self.accept(request, request.sequence, data)

    def check_granted(self, request: Request, before: "Standing") -> None:
        sequence = request.sequence
        assert sequence is not None
        assert 0 <= sequence.granted <= min(self.sizes.window, sequence.left, len(sequence.rows))
        if sequence.granted or sequence.done:
            request.missed = 0
            return
        assert before.begun, "a newcomer has no row"
        assert not before.interactive, "a stream has no row"
        request.missed += 1
        bound = self.most.owners * WEIGHT * self.most.requests * WEIGHT * WEIGHT
        assert request.missed <= bound, "it starves"

    def accept(self, request: Request, sequence: Sequence, data: st.DataObject) -> None:
        most = min(sequence.granted, sequence.left - sequence.guessed)
        done = data.draw(st.integers(0, most), label="accepted")
        near = data.draw(st.integers(0, sequence.granted - done), label="near")
        self.scheduler.accept(sequence, done, near=near)
        if sequence.draws and sequence.left == sequence.guessed:
            self.draw(request, sequence, data)
        if sequence.done:
            self.end(request)
            return
        window_full = len(sequence.rows) == sequence.left
        if sequence.draws and window_full and sequence.guessed < 4 and data.draw(st.booleans()):
            sequence.inputs.append(0)
            sequence.guessed += 1

    def draw(self, request: Request, sequence: Sequence, data: st.DataObject) -> None:
        """The true draw: the guess was right, or all guesses go."""
        request.to_draw -= 1
        if request.to_draw > 0 and sequence.guessed and data.draw(st.booleans(), label="right"):
            sequence.guessed -= 1
            return
        self.scheduler.withdraw(sequence)
        assert not sequence.guessed
        if request.to_draw > 0:
            sequence.inputs.append(0)

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.submitted == len(self.waiting) + len(self.running) + self.ended
        assert len(self.admission) == len(self.waiting)
        assert {id(work) for work in self.admission} == {id(r.work) for r in self.waiting}
        assert self.admission.tokens == sum(request.work.size for request in self.waiting)
        assert list(self.scheduler.running) == [request.sequence for request in self.running]
        assert len(self.running) <= self.sizes.max_running

    @invariant()
    def no_row_is_leaked(self) -> None:
        held = [row for sequence in self.scheduler.running for row in sequence.rows]
        every = sorted([*held, *self.scheduler._free_rows])
        assert every == list(range(self.sizes.most + self.sizes.resting))
        assert self.scheduler.active_rows <= self.sizes.most
        for sequence in self.scheduler.running:
            assert len(sequence.rows) <= sequence.left
            assert sequence.accepted <= len(sequence.inputs) - sequence.guessed

    def teardown(self) -> None:
        for request in list(self.running):
            self.end(request)
        for request in list(self.waiting):
            request.work.finished = True
        self.admission.drop_finished()
        assert len(self.admission) == self.admission.tokens == 0
        assert not self.scheduler._owners.members, "an owner is left in the scheduler"
        assert not self.admission._owners.members, "an owner is left in the queue"
        assert not self.scheduler.running_of


@dataclass(frozen=True)
class Standing:
    """A sequence before a call."""

    entered: int
    begun: bool
    interactive: bool


def _standing(request: Request) -> Standing:
    sequence = request.sequence
    assert sequence is not None
    return Standing(sequence.entered, sequence.begun, sequence.interactive)


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
