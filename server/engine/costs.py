"""What a call of f costs by its rows, and how many rows pay best. No torch, no clock."""

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

WINDOW_EXPONENT = 0.7
"""Tokens that a window accepts in one call grow about like its width to this power.

Measured with Broyden per token and a sliding window on two trained checkpoints: calls of f for 64
tokens were 326, 112, 64, 38, 22 and 12 at widths 1, 4, 8, 16, 32 and 64 for a regularised model,
a power of 0.8, and 563, 185, 104, 79, 52 and 56 for a stiff one: 0.7 up to a width of 16, hardly
anything beyond. 0.7 is right for the one where widths are usual, and near for the other. A wrong
one costs little: around the best width the speed is flat.
"""

_MOST_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of one call of f by its rows, interpolated between measurements.

    A call may be filled up with rows that nobody needs, so fewer rows are never slower than more:
    where a measurement says so, the later one counts. Beyond the last one, time is in proportion
    to rows.

    Attributes:
        rows: counts that were measured, rising.
        times: seconds of a call, never falling.
    """

    rows: tuple[int, ...]
    times: tuple[float, ...]

    @staticmethod
    def measured(points: Seq[tuple[int, float]]) -> "CostCurve":
        """The curve through (rows, seconds), in any order.

        Raises:
            ValueError: there are none, or rows or seconds that are impossible.
        """
        least: dict[int, float] = {}
        for rows, seconds in points:
            if rows < 1 or not 0 < seconds < float("inf"):
                raise ValueError(
                    "points must have rows of at least 1 and finite seconds above 0, "
                    f"got {rows} and {seconds}"
                )
            least[rows] = min(seconds, least.get(rows, seconds))
        if not least:
            raise ValueError("points must be at least 1, got 0")
        counts, times = sorted(least), list[float]()
        for rows in reversed(counts):
            times.append(min(least[rows], times[-1]) if times else least[rows])
        return CostCurve(tuple(counts), tuple(reversed(times)))

    def seconds(self, rows: int) -> float:
        """Of a call with so many rows, 0 for none."""
        if rows <= 0:
            return 0.0
        after = bisect_right(self.rows, rows)
        if after == 0:
            return self.times[0]
        begin, base = self.rows[after - 1], self.times[after - 1]
        if after == len(self.rows):
            return base * (rows / begin)
        share = (rows - begin) / (self.rows[after] - begin)
        return min(base + share * (self.times[after] - base), self.times[after])

    def within(self, seconds: float) -> int:
        """Most rows of a call that takes no longer; 0 when even one row does."""
        return bisect_right(range(1, _MOST_ROWS), seconds, key=self.seconds)

    def best_rows(self, exponent: float = WINDOW_EXPONENT) -> int:
        """How many rows to give a call when its yield grows like their number to ``exponent``.

        The least count that maximises ``rows ** exponent / seconds(rows)``, at most the largest
        that was measured. For n windows in one call the answer is the same: their yield is
        ``n ** (1 - exponent) * rows ** exponent``.
        """
        counts = range(1, self.rows[-1] + 1)
        return max(counts, key=lambda rows: rows**exponent / self.seconds(rows))


def measure(
    time_call: Callable[[int], float], *, most_rows: int, longest_s: float = 0.25
) -> CostCurve:
    """Times calls of 1, 2, 3, 4, 6, 8, … up to ``most_rows`` rows.

    Args:
        time_call: seconds of one call of f of so many rows.
        most_rows: of a call.
        longest_s: no more are timed after a call that takes longer than this.
    """
    points: list[tuple[int, float]] = []
    for rows in _counts(most_rows):
        points.append((rows, time_call(rows)))
        if points[-1][1] > longest_s:
            break
    return CostCurve.measured(points)


def _counts(most: int) -> list[int]:
    doubled = [1 << i for i in range(most.bit_length())]
    between = [3 * n // 2 for n in doubled[1:]]
    return sorted({n for n in (*doubled, *between, most) if n <= most})
