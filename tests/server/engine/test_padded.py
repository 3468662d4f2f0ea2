"""Places of the rows of a call: pure bookkeeping."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.layout import Layout, Layouts
from server.engine.padded import (
    STEP,
    WIDTHS,
    Arrangement,
    Shape,
    arrange,
    most_places,
    padded,
    stream_shapes,
)
from server.engine.scheduler import Sequence


def layout_of(counts: dict[int, int]) -> Layout:
    """So many rows of the sequences in these rows of the work area."""
    sequences, free = [], 0
    for slot, count in counts.items():
        rows = deque(range(free, free + count))
        free += count
        inputs = [0] * count
        sequences.append(Sequence(slot=slot, start=3, inputs=inputs, rows=rows, granted=count))
    return Layout.of(sequences)


def arranged(counts: dict[int, int], running: int = 64) -> Arrangement:
    rows = max(sum(counts.values()), running)
    return arrange(layout_of(counts), work_rows=running + 1, max_rows=rows)


@given(st.dictionaries(st.integers(0, 63), st.integers(1, 70), min_size=1, max_size=64))
def test_every_row_has_a_place_in_a_group_of_its_sequence(counts: dict[int, int]) -> None:
    found, layout = arranged(counts), layout_of(counts)
    shape = found.shape
    assert len(set(found.places)) == len(found.places) == len(layout.row_ids)
    assert len(found.work) == shape.groups
    assert shape.rows <= most_places(max(sum(counts.values()), 64))
    for place, work in zip(found.places, layout.work, strict=True):
        assert found.work[place // shape.width] == work
    if shape.dense:
        assert found.work == list(range(shape.groups))
    else:
        used = {place // shape.width for place in found.places}
        assert all(found.work[g] == 64 for g in range(shape.groups) if g not in used)


@given(st.integers(1, 5000))
def test_sizes_are_few_and_near(count: int) -> None:
    size = padded(count)
    assert count <= size
    assert size < 2 * count if count <= STEP else size < count + STEP
    assert padded(size) == size


@pytest.mark.parametrize(
    ("counts", "shape"),
    [
        ({0: 1}, Shape(1, 1, True)),
        ({37: 1}, Shape(1, 1, False)),
        ({i: 1 for i in range(33)}, Shape(64, 1, True)),
        ({0: 6}, Shape(1, 8, False)),
        ({0: 64}, Shape(1, 64, False)),
        ({0: 60, 1: 50}, Shape(2, 64, False)),
        ({0: 40, **{i: 1 for i in range(1, 60)}}, Shape(128, 1, False)),
    ],
)
def test_the_shape_is_the_cheapest(counts: dict[int, int], shape: Shape) -> None:
    assert arranged(counts).shape == shape


def test_shapes_of_streams_are_those_that_streams_get() -> None:
    assert stream_shapes(5) == [Shape(n, 1, True) for n in (1, 2, 4, 6)]
    prepared = stream_shapes(64)
    for running in range(1, 65):
        assert arranged({i: 1 for i in range(running)}).shape in prepared
    assert len(stream_shapes(256)) == len(WIDTHS) + 7


def test_rings_that_are_read_where_they_are_need_no_order() -> None:
    counts = {37: 1, 3: 1, 60: 1}
    found = arrange(layout_of(counts), work_rows=65, max_rows=64, in_place=True)
    assert found.shape == Shape(4, 1, False)
    assert found.work == [3, 37, 60, 64]
    assert found.shape in stream_shapes(64, in_place=True)
    wide = arrange(layout_of({0: 64}), work_rows=65, max_rows=64, in_place=True)
    assert wide.shape == Shape(1, 64, False), "one copy serves 64 rows"


def test_a_layout_stays_while_nobody_moves() -> None:
    layouts = Layouts()
    one = Sequence(slot=0, start=0, inputs=[1, 2], rows=deque([5, 3]), granted=1)
    first = layouts.of([one])
    assert layouts.of([one]) is first
    one.granted = 2
    second = layouts.of([one])
    assert second.row_ids == [5, 3]
    assert second.positions == [0, 1]
    one.rows.popleft()
    one.accepted, one.granted = 1, 1
    third = layouts.of([one])
    assert third.row_ids == [3]
    other = Sequence(slot=0, start=0, inputs=[1, 2], rows=deque([7]), granted=1, accepted=1)
    assert layouts.of([other]).row_ids == [7], "another sequence at the same place"
