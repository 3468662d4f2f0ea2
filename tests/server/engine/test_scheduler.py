"""The scheduler alone: no row is lost, none is given twice, nobody starves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.scheduler import STALL_CALLS, Scheduler, Sequence


def sequence(length: int) -> Sequence:
    return Sequence(slot=0, start=0, inputs=list(range(length)))


@settings(max_examples=150)
@given(
    data=st.data(),
    max_running=st.integers(1, 6),
    extra=st.integers(0, 20),
    window=st.integers(1, 8),
)
def test_every_token_is_entered_once_in_order_and_rows_add_up(
    data: st.DataObject, max_running: int, extra: int, window: int
) -> None:
    capacity = max_running + extra
    scheduler = Scheduler(max_batch_tokens=capacity, max_running=max_running, window=window)
    waiting = [sequence(n) for n in data.draw(st.lists(st.integers(1, 15), max_size=8))]
    entered: dict[Sequence, list[int]] = {s: [] for s in waiting}
    for _ in range(2000):
        while waiting and scheduler.has_room and data.draw(st.booleans()):
            scheduler.add(waiting.pop())
        for entry in scheduler.enter():
            entered[entry.sequence].append(entry.index)
        running = scheduler.running
        rows = [row for s in running for row in s.rows]
        assert len(rows) == len(set(rows)) == scheduler.active_rows <= capacity
        assert all(len(s.rows) <= window for s in running)
        assert all(s.rows for s in running if not s.done), "somebody has no row"
        free = capacity - len(rows)
        assert free >= max_running - len(running), "a newcomer would find no row"
        for s in running:
            scheduler.accept(s, data.draw(st.integers(0, len(s.rows))))
            if s.done:
                scheduler.remove(s)
        if not waiting and not scheduler.running:
            break
    else:
        pytest.fail("the sequences did not end")
    assert all(indices == list(range(len(s.inputs))) for s, indices in entered.items())


def test_a_lone_sequence_fills_its_window() -> None:
    scheduler = Scheduler(max_batch_tokens=20, max_running=2, window=16)
    alone = sequence(100)
    scheduler.add(alone)
    scheduler.enter()
    assert len(alone.rows) == 16


def test_spare_rows_are_shared_evenly() -> None:
    scheduler = Scheduler(max_batch_tokens=22, max_running=4, window=16)
    two = [sequence(100), sequence(100)]
    for s in two:
        scheduler.add(s)
    scheduler.enter()
    assert [len(s.rows) for s in two] == [10, 10]  # two rows are kept for newcomers


def test_removing_frees_the_rows_of_the_window() -> None:
    scheduler = Scheduler(max_batch_tokens=4, max_running=1, window=4)
    for _ in range(3):
        s = sequence(9)
        scheduler.add(s)
        scheduler.enter()
        assert len(s.rows) == 4
        scheduler.remove(s)


@pytest.mark.parametrize(("rows", "running"), [(3, 4), (3, 0)])
def test_impossible_sizes(rows: int, running: int) -> None:
    with pytest.raises(ValueError, match=rf"max_running must be in \[1, .*3\], got {running}"):
        Scheduler(max_batch_tokens=rows, max_running=running, window=1)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Scheduler(max_batch_tokens=3, max_running=3, window=0)


def test_behind_a_stalled_token_the_others_rest() -> None:
    scheduler = Scheduler(max_batch_tokens=8, max_running=1, window=4)
    s = sequence(9)
    scheduler.add(s)
    scheduler.enter()
    for _ in range(STALL_CALLS):
        assert len(s.active) == scheduler.active_rows == 4
        scheduler.accept(s, 0)
    assert s.active == [s.rows[0]]
    assert scheduler.active_rows == 1
    scheduler.accept(s, 1)
    scheduler.enter()
    assert len(s.active) == 4
