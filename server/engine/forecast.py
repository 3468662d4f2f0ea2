"""When a job would be done that comes now, how far such forecasts were off, and who comes too late.

No torch, no threads: the engine's lock is around it.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.errors import Cancelled, DeadlineExceeded, TooLate
from server.engine.rates import Progress
from server.engine.work import Work

_RETRY_S, _LEAST_RETRY_S, _LONGEST_RETRY_S = 1.0, 0.1, 30.0
"""What callers that are refused are told: while nothing is measured, at least, and at most."""

_SKEW_S = 0.1


@dataclass(slots=True)
class Margin:
    """By how much to multiply a forecast so that nearly every job is done by then.

    It is what all but one in a hundred of the last jobs took of what was foretold of them. A job
    that its deadline ended would have taken longer, by nobody knows how much: it counts for more.

    Attributes:
        times: the margin.
        is_learned: whether it comes from jobs, or is the first guess.
    """

    FIRST = 3.0
    """On two cores and the default model, 1 in 100 took 3.1 times as long as was foretold."""
    LEAST, MOST = 2.0, 6.0
    """Never less, or a calm hour would have the first jobs of a rush be late."""
    _LAST = 256
    _ENOUGH = 64
    _LATE = 1.2

    times: float = FIRST
    is_learned: bool = False
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=Margin._LAST))

    def note(self, foretold_s: float, took_s: float, *, late: bool) -> None:
        """A job took so long; ``late`` if it was not done then."""
        self._ratios.append(took_s / foretold_s * (self._LATE if late else 1.0))
        if len(self._ratios) >= self._ENOUGH:
            ranked = sorted(self._ratios)
            found = ranked[len(ranked) * 99 // 100]
            self.times, self.is_learned = min(max(found, self.LEAST), self.MOST), True


class Forecast:
    """Watches what the engine does, and foretells when a job would be done."""

    LEAST_S = 0.1
    """Of what is foretold in less, single calls of f decide, not the queue: it teaches nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._progress = Progress(clock)
        self._margin = Margin()

    @property
    def margin(self) -> float:
        """See ``Margin``."""
        return self._margin.times

    def look(self, running: list[Work], solved: int) -> None:
        """See ``Progress``."""
        self._progress.look(running, solved)

    def retry_after_s(self, waiting_tokens: int) -> float:
        """When what waits will have been worked off."""
        wait_s = self._progress.rate.seconds(waiting_tokens)
        return _RETRY_S if wait_s is None else min(max(wait_s, _LEAST_RETRY_S), _LONGEST_RETRY_S)

    def foretell(self, size: int, before: int) -> float | None:
        """In how many seconds a job of ``size`` tokens would be done; None where nobody knows.

        Args:
            size: its tokens.
            before: tokens that wait and go first.
        """
        return self._progress.seconds(size, before)

    def check(
        self, foretold_s: float | None, has_s: float, retry_after_s: float, *, others_wait: bool
    ) -> None:
        """Looks whether a job would be done in the time it has.

        Args:
            foretold_s: the time that it would take.
            has_s: the time until its deadline.
            retry_after_s: what its caller is told.
            others_wait: whether there is a queue, for which the first guess is made. Where all that
                comes is let in at once, later jobs take of the calls as well, as has been learned.

        Raises:
            TooLate: it would not.
        """
        if foretold_s is None:
            return
        is_known = others_wait or self._margin.is_learned
        needs_s = foretold_s * (self.margin if is_known else Margin.LEAST)
        if needs_s > has_s:
            raise TooLate(
                f"deadline must be at least {needs_s:.2g} s away with what goes before this call, "
                f"got {has_s:.2g} s",
                retry_after_s=retry_after_s,
            )

    def end(self, work: Work) -> None:
        """A job is over: learns from it, if it was done or its deadline has ended it."""
        now, foretold_s = self._clock(), work.foretold_s
        late = _is_late(work, now)
        if foretold_s is None or foretold_s < self.LEAST_S or (work.error and not late):
            return
        self._margin.note(foretold_s, now - work.submitted, late=late)


def _is_late(work: Work, now: float) -> bool:
    """Whether its deadline has ended a job; its caller may have told so before the clock did."""
    if isinstance(work.error, Cancelled):
        return work.job.deadline is not None and now > work.job.deadline - _SKEW_S
    return isinstance(work.error, DeadlineExceeded)
