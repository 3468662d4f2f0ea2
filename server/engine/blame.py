"""Whose fault it is when something that is done for many jobs at once fails.

It is done again for fewer: for halves of the jobs, for halves of those halves that failed, down to
single ones. What fails once does no harm then, a job for which it fails by itself ends, and the
others never hear of it. A fault that is everybody's ends all after a few times.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from server.engine.answers import Answers
from server.engine.memory import is_out_of_memory
from server.engine.work import Work

log = logging.getLogger(__name__)

MOST_PARTS = 8
"""Where so many parts of the jobs fail, and none does not, the fault is no job's own."""

QUIET_S = 10.0
"""Between two lines of the log about failures that may yet harm nobody."""

Act = Callable[[Collection[Work]], None]
"""Does something for some of the jobs: all of it, or it raises and may be done again."""
Prepare = Callable[[Collection[Work], bool], None]
"""Gets jobs ready for another time; the flag asks for as little memory to be taken as will do."""

_Failure = tuple[Sequence[Work], Exception]


class Blame:
    """Does what jobs share, and ends those of them for which that fails.

    Attributes:
        repeated: how often something had to be done again so far.
    """

    def __init__(self, answers: Answers) -> None:
        """Takes what ends jobs."""
        self._answers = answers
        self.repeated = 0
        self._quiet_until = -math.inf

    def share(self, works: Iterable[Work], act: Act, prepare: Prepare | None = None) -> None:
        """Does something for jobs together, those left out that have ended.

        Args:
            works: the jobs.
            act: what to do.
            prepare: called before it is done again.
        """
        running = [work for work in dict.fromkeys(works) if not work.finished]
        if not running:
            return
        try:
            act(set(running))
        except Exception as error:
            self._log(len(running))
            if is_out_of_memory(error):
                self._answers.make_room()
            self._part(running, act, prepare or _ready)

    def _log(self, count: int) -> None:
        """A failure may come with every call: its trace need not."""
        now = time.monotonic()
        if now >= self._quiet_until:
            log.exception("what %d jobs share failed, and is done again", count)
            self._quiet_until = now + QUIET_S

    def end(self, works: Collection[Work], error: Exception) -> None:
        """Ends jobs for which something failed that cannot be done again."""
        self._end([(list(works), error)])

    def _part(self, works: Sequence[Work], act: Act, prepare: Prepare) -> None:
        # Jobs of one owner stay together: theirs may all have the same fault.
        parts = _halves(sorted(works, key=lambda work: work.job.owner))
        none_done = True
        while parts:
            tried = [(part, self._again(part, act, prepare)) for part in parts]
            failures = [(part, error) for part, error in tried if error is not None]
            none_done = none_done and len(failures) == len(tried)
            if none_done and len(failures) >= MOST_PARTS:
                self._end(failures)
                return
            self._end(self._in_little(_single(failures), act, prepare))
            parts = [half for part, _ in failures if len(part) > 1 for half in _halves(part)]

    def _again(
        self, part: Sequence[Work], act: Act, prepare: Prepare, *, little: bool = False
    ) -> Exception | None:
        """What was raised; None where it is done."""
        running = [work for work in part if not work.finished]
        if not running:
            return None
        self.repeated += 1
        try:
            prepare(running, little)
            act(set(running))
        except Exception as error:
            return error
        return None

    def _in_little(
        self, failures: Sequence[_Failure], act: Act, prepare: Prepare
    ) -> Sequence[_Failure]:
        """What still fails of it where memory was short, and less of it is asked for."""
        tried = [
            (
                part,
                self._again(part, act, prepare, little=True) if is_out_of_memory(error) else error,
            )
            for part, error in failures
        ]
        return [(part, error) for part, error in tried if error is not None]

    def _end(self, failures: Sequence[_Failure]) -> None:
        for part, error in failures:
            log.error(
                "jobs %s are ended for it",
                [work.job.job_id for work in part],
                exc_info=error,
                extra={"request_id": " ".join(sorted({work.job.request_id for work in part}))},
            )
            self._answers.break_off(part, error)


def _ready(works: Collection[Work], little: bool) -> None:
    """There is nothing to be done before another time."""


def _halves(works: Sequence[Work]) -> list[Sequence[Work]]:
    middle = len(works) // 2
    return [half for half in (works[:middle], works[middle:]) if half]


def _single(failures: Sequence[_Failure]) -> Sequence[_Failure]:
    return [(part, error) for part, error in failures if len(part) == 1]
