"""The cost of a call by its rows: through what was measured, never falling, and its uses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.costs import CostCurve, measure

POINTS = st.lists(
    st.tuples(st.integers(1, 400), st.floats(1e-6, 10.0, allow_subnormal=False)),
    min_size=1,
    max_size=8,
)
CPU = CostCurve.measured(
    [(1, 9e-3), (2, 11e-3), (4, 8e-3), (8, 10e-3), (16, 14e-3), (32, 24e-3), (64, 47e-3)]
)
"""Of a feed-forward of 700-48000-700 in float32 on two cores."""


def test_between_measurements_it_is_straight() -> None:
    curve = CostCurve.measured([(10, 2.0), (2, 1.0)])
    assert [curve.seconds(n) for n in (0, 1, 2, 6, 10, 20)] == [0.0, 1.0, 1.0, 1.5, 2.0, 4.0]


def test_a_call_may_be_filled_up_with_rows_that_nobody_needs() -> None:
    assert CPU.seconds(1) == CPU.seconds(2) == CPU.seconds(4) == 8e-3


@given(points=POINTS)
def test_it_never_falls_and_lies_on_no_measurement_s_far_side(
    points: list[tuple[int, float]],
) -> None:
    curve = CostCurve.measured(points)
    times = [curve.seconds(n) for n in range(500)]
    assert times == sorted(times)
    assert all(curve.seconds(rows) <= seconds for rows, seconds in points)
    assert {curve.seconds(rows) for rows, _ in points} <= {seconds for _, seconds in points}


@given(points=POINTS, seconds=st.floats(0.0, 20.0))
def test_within_is_the_most_that_takes_no_longer(
    points: list[tuple[int, float]], seconds: float
) -> None:
    curve = CostCurve.measured(points)
    rows = curve.within(seconds)
    assert curve.seconds(rows) <= seconds
    assert curve.seconds(rows + 1) > seconds or rows > 10**6


@given(points=POINTS, exponent=st.floats(0.1, 1.0))
def test_best_rows_beats_every_other_count(
    points: list[tuple[int, float]], exponent: float
) -> None:
    curve = CostCurve.measured(points)
    best = curve.best_rows(exponent)
    most = max(rows for rows, _ in points)
    gains = [n**exponent / curve.seconds(n) for n in range(1, most + 1)]
    assert gains[best - 1] == max(gains)


def test_the_best_width_follows_the_machine() -> None:
    assert 12 <= CPU.best_rows() <= 32
    assert CPU.best_rows(1.0) == 64 > CPU.best_rows() > CPU.best_rows(0.3)
    # Where a call costs the same up to 256 rows, as on a GPU, it should have them.
    assert CostCurve.measured([(1, 1e-3), (256, 1e-3), (512, 2e-3)]).best_rows() == 256


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "points must be at least 1, got 0"),
        ([(0, 1.0)], "rows of at least 1 and finite seconds above 0, got 0 and 1.0"),
        ([(1, 0.0)], "got 1 and 0.0"),
        ([(1, float("nan"))], "got 1 and nan"),
        ([(1, float("inf"))], "got 1 and inf"),
    ],
)
def test_impossible_points(points: list[tuple[int, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostCurve.measured(points)


def test_measuring_times_each_size_once_and_stops_where_it_gets_slow() -> None:
    seen: list[int] = []

    def time_call(rows: int) -> float:
        seen.append(rows)
        return 1e-2 * rows

    curve = measure(time_call, most_rows=20, longest_s=0.1)
    assert curve.rows == (1, 2, 3, 4, 6, 8, 12)
    assert curve.times == pytest.approx([1e-2 * rows for rows in curve.rows])
    assert measure(time_call, most_rows=20).rows == (1, 2, 3, 4, 6, 8, 12, 16, 20)
    assert measure(time_call, most_rows=1).rows == (1,)
    assert len(seen) == 7 + 9 + 1
