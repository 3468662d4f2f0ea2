"""The scheduler alone: rows add up, calls keep to their time, everybody has a turn."""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.costs import CostCurve
from server.engine.fair import PRIORITY_WEIGHTS
from server.engine.scheduler import LOOKAHEAD, STALL_CALLS, STREAM_SLOWDOWN, Scheduler, Sequence

CURVES = (
    CostCurve.measured([(1, 9e-3), (4, 8e-3), (8, 1e-2), (16, 1.4e-2), (32, 2.4e-2)]),
    CostCurve.measured([(1, 1e-3), (64, 1e-3), (128, 2e-3)]),
    CostCurve.measured([(1, 1e-3)]),  # in proportion to rows: nothing is gained by more
)


def sequence(length: int, **changes: object) -> Sequence:
    return Sequence(slot=0, start=0, inputs=list(range(length)), **changes)  # type: ignore[arg-type]


def add(scheduler: Scheduler, *sequences: Sequence) -> list[Sequence]:
    for each in sequences:
        scheduler.add(each)
    return list(sequences)


def call(scheduler: Scheduler, *, accept: int = 0, near: int = 64) -> list[int]:
    """One call of f after which each accepts so many of its active rows; how many those were.

    The others are near their fixed points, and so might be as many more: windows have a use for
    all the rows that they can get, unless ``near`` is less.
    """
    scheduler.enter()
    granted = [s.granted for s in scheduler.running]
    for s in scheduler.active:
        scheduler.accept(s, min(accept, s.granted), near=near)
    return granted


@dataclass
class Simulation:
    """Sequences that come, are solved and go, checked at every call."""

    scheduler: Scheduler
    max_batch_tokens: int
    max_rows: int
    window: int
    entered: dict[Sequence, int] = field(default_factory=dict)
    drawn: Counter[Sequence] = field(default_factory=Counter)
    waited: Counter[Sequence] = field(default_factory=Counter)
    most: list[int] = field(default_factory=lambda: [1, 1, 1])

    def add(self, new: Sequence) -> None:
        self.scheduler.add(new)
        self.entered[new] = 0
        running = self.scheduler.running
        owners = Counter(s.owner for s in {(s.owner, s.request): s for s in running}.values())
        requests = Counter((s.owner, s.request) for s in running)
        now = [len(owners), max(owners.values()), max(requests.values())]
        self.most = [max(a, b) for a, b in zip(self.most, now, strict=True)]

    def call(self, data: st.DataObject) -> None:
        scheduler = self.scheduler
        before = {s: (s.begun, s.interactive) for s in scheduler.running}
        for entry in scheduler.enter():
            assert entry.index == self.entered[entry.sequence], "out of order"
            self.entered[entry.sequence] += 1
        running = scheduler.running
        rows = [row for s in running for row in s.rows]
        assert len(rows) == len(set(rows)), "a row is used twice"
        assert set(rows) <= set(range(self.max_rows))
        assert scheduler.active_rows == sum(len(s.active) for s in running)
        assert scheduler.active == tuple(s for s in running if s.active)
        for s in running:
            assert s.active == list(s.rows)[: s.granted]
            assert s.granted <= min(self.window, s.left)
            assert not s.interactive or s.guessed or s.granted == 1
            begun, interactive = before[s]
            assert s.granted or s.done or (begun and not interactive), "it has to wait"
        self._check_time(sum(not begun for begun, _ in before.values()))
        self._check_waiting()
        for s in scheduler.active:
            done = data.draw(st.integers(0, min(s.granted, s.left - s.guessed)))
            scheduler.accept(s, done, near=data.draw(st.integers(0, s.granted - done)))
            if s.draws:
                self._draw(data, s)
            if s.done:
                scheduler.remove(s)

    def _draw(self, data: st.DataObject, s: Sequence) -> None:
        """Draws the next token if it is time, guessed or not; and guesses one more."""
        if s.left == s.guessed:
            self.drawn[s] += 1
            if s.guessed and self.drawn[s] <= 5 and data.draw(st.booleans()):
                s.guessed -= 1
            else:
                self.scheduler.withdraw(s)
                s.inputs += [0] * (self.drawn[s] <= 5)
        if len(s.rows) == s.left > 0 and s.guessed < 4 and data.draw(st.booleans()):
            s.inputs.append(0)
            s.guessed += 1
        self.entered[s] = s.entered

    def _check_time(self, new: int) -> None:
        scheduler, costs = self.scheduler, self.scheduler.costs
        rows = scheduler.active_rows
        assert rows <= self.max_batch_tokens
        streams = sum(s.granted for s in scheduler.running if s.interactive)
        if costs is not None and streams and rows > streams + new + 1:
            assert costs.seconds(rows) <= STREAM_SLOWDOWN * costs.seconds(streams)

    def _check_waiting(self) -> None:
        weights = [PRIORITY_WEIGHTS[s.priority] for s in self.entered]
        for s in self.scheduler.running:
            self.waited[s] = 0 if s.granted or s.done else self.waited[s] + 1
            share = 2 + max(weights) / min(weights)
            assert self.waited[s] <= self.most[0] * self.most[1] * self.most[2] * share**3


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    max_running=st.integers(1, 8),
    extra=st.integers(0, 20),
    resting=st.integers(0, 20),
    window=st.integers(1, 8),
    costs=st.sampled_from((None, *CURVES)),
)
def test_whatever_comes_rows_add_up_and_everybody_is_served(
    data: st.DataObject,
    max_running: int,
    extra: int,
    resting: int,
    window: int,
    costs: CostCurve | None,
) -> None:
    scheduler = Scheduler(
        max_batch_tokens=max_running + extra,
        max_running=max_running,
        window=window,
        max_rows=max_running + extra + resting,
        costs=costs,
    )
    simulation = Simulation(
        scheduler, max_running + extra, max_running + extra + resting, window=window
    )
    kinds = st.builds(
        sequence,
        st.integers(1, 15),
        owner=st.sampled_from("ab"),
        request=st.sampled_from("xy"),
        priority=st.sampled_from((0, 1, 2)),
        draws=st.booleans(),
    )
    waiting = data.draw(st.lists(kinds, max_size=12))
    for _ in range(3000):
        while waiting and scheduler.has_room and data.draw(st.booleans()):
            simulation.add(waiting.pop())
        simulation.call(data)
        if not waiting and not scheduler.running:
            break
    else:
        pytest.fail("the sequences did not end")
    assert all(count == len(s.inputs) for s, count in simulation.entered.items())
    (last,) = add(scheduler, sequence(100))
    kept = max_running - 1
    found = min(window, max_running + extra, max_running + extra + resting - kept)
    assert call(scheduler) == [found] or costs is not None
    assert len(last.rows) == last.granted


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from([(2, 1, 1), (3, 2, 1), (2, 2, 2), (1, 3, 2), (6, 1, 1)]),
)
def test_beside_streams_everybody_else_has_a_row_within_the_bound(
    data: st.DataObject, shape: tuple[int, int, int]
) -> None:
    """One row a call is left for many, and what is served goes and is followed by others."""
    owners, requests, members = shape
    n = owners * requests * members
    scheduler = Scheduler(max_batch_tokens=99, max_running=n + 1, window=4, costs=CURVES[2])
    stream, patient = sequence(1, owner="stream", draws=True), sequence(10**6, request=0)
    add(scheduler, stream, patient)
    names = list(itertools.product(range(owners), range(requests), range(members)))[1:]
    mates: dict[tuple[int, int, int], Sequence] = {}
    waited = longest = 0
    for _ in range(12 * n):
        for name in names:
            if name not in mates:
                length = data.draw(st.integers(1, 3))
                owner = "" if name[0] == 0 else str(name[0])
                mates[name] = sequence(length, owner=owner, request=name[1])
                scheduler.add(mates[name])
        scheduler.enter()
        waited = 0 if patient.granted else waited + 1
        longest = max(longest, waited)
        assert scheduler.active_rows <= 2 + sum(not m.stalled_calls for m in mates.values())
        for s in scheduler.active:
            scheduler.accept(s, s.granted)
        stream.inputs.append(0)
        for name, mate in list(mates.items()):
            if mate.done:
                scheduler.remove(mates.pop(name))
    assert longest <= 27 * n


def test_a_lone_request_fills_its_window_and_makes_room_for_others() -> None:
    scheduler = Scheduler(max_batch_tokens=64, max_running=4, window=16)
    (alone,) = add(scheduler, sequence(100))
    assert call(scheduler, near=0) == [16]
    scheduler.costs = CURVES[0]
    best = CURVES[0].best_rows()
    assert call(scheduler, near=0) == [best]
    add(scheduler, sequence(100), sequence(100))
    assert sum(call(scheduler, near=0)) == best
    assert sorted(call(scheduler, near=0))[0] >= best // 3
    assert len(alone.rows) == 16, "what rests keeps its row"


def test_without_streams_everybody_has_a_row_in_every_call() -> None:
    scheduler = Scheduler(max_batch_tokens=64, max_running=40, window=8, costs=CURVES[0])
    add(scheduler, *(sequence(100, owner=str(i)) for i in range(40)))
    assert CURVES[0].best_rows() < 40
    assert all(min(call(scheduler)) >= 1 for _ in range(5))


def test_what_is_accepted_is_active_no_longer() -> None:
    scheduler = Scheduler(max_batch_tokens=8, max_running=1, window=8)
    (s,) = add(scheduler, sequence(9))
    scheduler.enter()
    rows = list(s.rows)
    scheduler.accept(s, 3)
    assert s.active == rows[3:]
    assert scheduler.active_rows == 5


def test_what_rests_is_used_before_more_enters() -> None:
    scheduler = Scheduler(max_batch_tokens=16, max_running=2, window=16)
    (first,) = add(scheduler, sequence(100))
    call(scheduler)
    assert len(first.rows) == 15  # one is kept
    add(scheduler, sequence(100))
    for _ in range(4):
        call(scheduler, accept=2)
    assert len(first.rows) == 15 - 4 * 2
    assert call(scheduler) == [8, 8]
    assert len(first.rows) == 8


def test_all_new_ones_are_in_the_next_call_however_many_they_are() -> None:
    scheduler = Scheduler(max_batch_tokens=64, max_running=64, window=8, costs=CURVES[2])
    add(scheduler, sequence(1, draws=True), sequence(100))
    call(scheduler)
    new = add(scheduler, *(sequence(100, owner="b") for _ in range(40)))
    granted = call(scheduler)
    assert len(new) == 40
    assert min(granted[2:]) >= 1
    assert granted[1] + call(scheduler)[1] >= 1, "those who were there are pushed aside"


@settings(max_examples=40)
@given(
    priorities=st.lists(st.sampled_from((0, 1, 2)), min_size=2, max_size=5),
    by_owner=st.booleans(),
    rows=st.integers(5, 40),
)
def test_shares_go_by_priority_to_within_a_row(
    priorities: list[int], by_owner: bool, rows: int
) -> None:
    """Between the requests of an owner as between owners."""
    scheduler = Scheduler(max_batch_tokens=rows, max_running=5, window=64, max_rows=400)
    name = "owner" if by_owner else "request"
    made = [sequence(10**5, priority=p, **{name: str(i)}) for i, p in enumerate(priorities)]
    add(scheduler, *made)
    call(scheduler)
    had = [0] * len(made)
    for _ in range(60):
        had = [a + b for a, b in zip(had, call(scheduler, accept=1), strict=True)]
    weights = [PRIORITY_WEIGHTS[p] for p in priorities]
    for a, x in zip(had, weights, strict=True):
        for b, y in zip(had, weights, strict=True):
            assert abs(a / x - b / y) <= 2 * (1 / x + 1 / y)


def test_many_requests_of_one_owner_do_not_take_the_calls_from_another() -> None:
    scheduler = Scheduler(
        max_batch_tokens=64, max_running=40, window=64, max_rows=200, costs=CURVES[0]
    )
    many = [sequence(10**5, owner="many", request=i) for i in range(32)]
    add(scheduler, *many, sequence(10**5, owner="one"))
    call(scheduler)
    had = [call(scheduler, accept=1) for _ in range(20)]
    one = sum(granted[-1] for granted in had)
    assert abs(one - sum(sum(granted[:-1]) for granted in had)) <= 4
    turns = [sum(granted[i] for granted in had) for i in range(32)]
    assert max(turns) - min(turns) <= 1


def test_candidates_of_a_request_share_its_turn() -> None:
    scheduler = Scheduler(max_batch_tokens=64, max_running=20, window=64, max_rows=99)
    add(scheduler, *(sequence(10**5, request="many") for _ in range(8)), sequence(10**5))
    call(scheduler)
    granted = call(scheduler)
    assert granted[-1] == 32
    assert granted[:-1] == [4] * 8


@pytest.mark.parametrize("costs", CURVES)
@pytest.mark.parametrize("streams", [1, 7])
def test_long_scoring_does_not_hold_up_streams(costs: CostCurve, streams: int) -> None:
    scheduler = Scheduler(max_batch_tokens=512, max_running=16, window=64, costs=costs)
    live = add(scheduler, *(sequence(1, owner="s", request=i, draws=True) for i in range(streams)))
    long = add(scheduler, sequence(5000, owner="long"))
    for s in live:
        assert s.interactive
    call(scheduler)
    for _ in range(50):
        granted = call(scheduler, accept=1)
        assert granted[:-1] == [1] * streams
        assert granted[-1] >= 1
        alone = costs.seconds(streams)
        assert costs.seconds(sum(granted)) <= max(STREAM_SLOWDOWN * alone, alone + costs.seconds(1))
        for s in live:
            s.inputs.append(0)
    assert long[0].accepted == 50
    for s in live:
        scheduler.remove(s)
    assert call(scheduler, near=0) == [64]
    assert call(scheduler) == [min(LOOKAHEAD, costs.best_rows())]


def test_rows_behind_one_that_is_far_wait_while_others_fill_the_call() -> None:
    curve = CostCurve.measured([(1, 1.0), (8, 1.0), (64, 8.0)])
    scheduler = Scheduler(max_batch_tokens=64, max_running=20, window=16, costs=curve)
    first, second = add(scheduler, sequence(99), sequence(99))
    assert call(scheduler, near=0) == [4, 4], "with eight rows a call takes no longer than with one"
    others = add(scheduler, *(sequence(99) for _ in range(8)))
    assert call(scheduler, near=0) == [1] * 10
    assert (len(first.rows), len(second.rows)) == (4, 4), "those that rest stay where they are"
    scheduler.enter()
    scheduler.accept(first, 0, near=2)
    for s in (second, *others):
        scheduler.accept(s, 0, near=0)
    assert call(scheduler, near=0) == [3, *[1] * 9]
    scheduler.enter()
    scheduler.accept(second, 1, near=4)
    assert call(scheduler)[1] == 5, "one more enters behind the last that is near"


def test_a_prompt_is_no_stream_until_its_last_token() -> None:
    scheduler = Scheduler(max_batch_tokens=16, max_running=2, window=8)
    (prompt,) = add(scheduler, sequence(9, draws=True))
    assert call(scheduler, accept=8) == [8]
    assert prompt.interactive
    assert not sequence(1).interactive


def test_removing_frees_the_rows_of_the_window() -> None:
    scheduler = Scheduler(max_batch_tokens=4, max_running=1, window=4)
    for owner in "abc":
        s = sequence(9, owner=owner)
        add(scheduler, s)
        scheduler.enter()
        assert len(s.rows) == 4
        assert scheduler.running_of[owner] == 1
        scheduler.remove(s)
        assert scheduler.running_of[owner] == 0
        assert not s.rows
        assert not s.active


@pytest.mark.parametrize(("rows", "running"), [(3, 4), (3, 0)])
def test_impossible_sizes(rows: int, running: int) -> None:
    with pytest.raises(ValueError, match=rf"max_running must be in \[1, .*3\], got {running}"):
        Scheduler(max_batch_tokens=rows, max_running=running, window=1)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Scheduler(max_batch_tokens=3, max_running=3, window=0)
    with pytest.raises(ValueError, match="max_rows must be at least max_batch_tokens = 3, got 2"):
        Scheduler(max_batch_tokens=3, max_running=3, window=1, max_rows=2)


def test_behind_a_stalled_token_the_others_rest() -> None:
    scheduler = Scheduler(max_batch_tokens=8, max_running=1, window=4)
    (s,) = add(scheduler, sequence(9))
    for _ in range(STALL_CALLS):
        assert call(scheduler) == [4]
    assert call(scheduler) == [1]
    assert len(s.rows) == 4
    assert call(scheduler, accept=1) == [1]
    assert call(scheduler) == [4]
