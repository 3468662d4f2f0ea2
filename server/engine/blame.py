"""Whose fault it is when something that is done for many jobs at once fails.

It is done again for fewer: for halves of the jobs, for halves of those halves that failed, down to
single ones. What fails once does no harm then, a job for which it fails twice by itself ends, and
the others never hear of it, however many are at fault. A fault that is everybody's ends all, which
takes no longer than looking for one that has not got it is worth.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from server.engine.answers import Answers
from server.engine.memory import is_out_of_memory
from server.engine.work import Work

log = logging.getLogger(__name__)

LEAST_PARTS = 8
PATIENCE_S = 5.0
"""Where so many parts of the jobs fail, and none does not, for so long, the fault is nobody's own:
others wait meanwhile, and calls of a broken device may take long to fail.
"""

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

    def __init__(self, answers: Answers, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes what ends jobs, and what tells seconds."""
        self._answers, self._clock = answers, clock
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
        now = self._clock()
        if now >= self._quiet_until:
            log.exception("what %d jobs share failed, and is done again", count)
            self._quiet_until = now + QUIET_S

    def end(self, works: Collection[Work], error: Exception) -> None:
        """Ends jobs for which something failed that cannot be done again."""
        self._end([(list(works), error)])

    def _part(self, works: Sequence[Work], act: Act, prepare: Prepare) -> None:
        # Jobs of one owner stay together: theirs may all have the same fault.
        parts = _halves(sorted(works, key=lambda work: work.job.owner))
        none_done, patient_until = True, self._clock() + PATIENCE_S
        while parts:
            tried = [(part, self._again(part, act, prepare)) for part in parts]
            failures = [(part, error) for part, error in tried if error is not None]
            none_done = none_done and len(failures) == len(tried)
            is_hopeless = none_done and self._clock() >= patient_until
            if is_hopeless and len(failures) >= LEAST_PARTS:
                self._end(failures)
                return
            self._end(self._once_more(_single(failures), act, prepare))
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

    def _once_more(
        self, failures: Sequence[_Failure], act: Act, prepare: Prepare
    ) -> Sequence[_Failure]:
        """What still fails of it: a job that is alone may have had bad luck, or too little memory.

        Less memory is asked for where that was short.
        """
        tried = [
            (part, self._again(part, act, prepare, little=is_out_of_memory(error)))
            for part, error in failures
        ]
        return [(part, error) for part, error in tried if error is not None]

    def _end(self, failures: Sequence[_Failure]) -> None:
        traced = set()
        for part, error in failures:
            what = (type(error), str(error))
            log.error(
                "jobs %s are ended for it",
                [work.job.job_id for work in part],
                exc_info=None if what in traced else error,
                extra={"request_id": " ".join(sorted({work.job.request_id for work in part}))},
            )
            traced.add(what)
            self._answers.break_off(part, error)


def _ready(works: Collection[Work], little: bool) -> None:
    """There is nothing to be done before another time."""


def _halves(works: Sequence[Work]) -> list[Sequence[Work]]:
    middle = len(works) // 2
    return [half for half in (works[:middle], works[middle:]) if half]


def _single(failures: Sequence[_Failure]) -> Sequence[_Failure]:
    return [(part, error) for part, error in failures if len(part) == 1]
