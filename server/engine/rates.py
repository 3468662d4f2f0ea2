"""How fast jobs are worked off, as measured, and when one that comes now would be done."""

from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.work import Work

_MEMORY_S = 5.0
"""Time of work after which what was measured before counts for about a third."""
_LEAST_S = 0.5
"""Time of work before which nothing is foretold."""


@dataclass(slots=True)
class Rate:
    """Tokens per second of work, those of the last seconds above all."""

    _tokens: float = 0.0
    _seconds: float = 0.0
    _total_s: float = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """So many tokens were done in so much time."""
        keep = max(0.0, 1.0 - seconds / _MEMORY_S)
        self._tokens = self._tokens * keep + tokens
        self._seconds = self._seconds * keep + seconds
        self._total_s += seconds

    @property
    def per_s(self) -> float | None:
        """None before there is enough to tell."""
        if self._total_s < _LEAST_S or self._tokens <= 0:
            return None
        return self._tokens / self._seconds

    def seconds(self, tokens: int) -> float | None:
        """What so many tokens take; None where that is not known."""
        per_s = self.per_s
        return None if per_s is None else tokens / per_s


@dataclass(slots=True)
class Progress:
    """Watches what the running jobs do.

    Attributes:
        rate: of all jobs together.
        running: tokens that each of them may still take.
    """

    clock: Callable[[], float]
    rate: Rate = field(default_factory=Rate)
    running: tuple[int, ...] = ()
    _since: float | None = None
    _solved: int = 0

    def look(self, running: list[Work], solved: int) -> None:
        """Note what was done since the last look; time without jobs does not count.

        Args:
            running: jobs that go on.
            solved: tokens accepted since the start.
        """
        now = self.clock()
        if self._since is not None:
            self.rate.note(solved - self._solved, now - self._since)
        self._since, self._solved = (now if running else None), solved
        self.running = tuple(max(0, work.size - work.stats.solved_tokens) for work in running)

    def seconds(self, size: int, before: int) -> float | None:
        """When a job would be done that comes now; None where that is not known.

        Jobs that run share the calls with it: of each no more is done meanwhile than of all that
        comes before its end.

        Args:
            size: its tokens.
            before: tokens that wait and go first.
        """
        own = before + size
        return self.rate.seconds(own + sum(min(left, own) for left in self.running))
