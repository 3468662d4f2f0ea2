"""What callers leave for the engine's thread, and where that finds it: jobs and errands."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from server.engine.admission import Admission
from server.engine.errors import EngineStopped
from server.engine.forecast import Forecast
from server.engine.limits import EngineLimits
from server.engine.requests import Job
from server.engine.work import Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeskState:
    """How much there is: jobs that run and wait, tokens that wait, and what the jobs wait for."""

    running: int
    waiting: int
    tokens: int
    by_cause: Counter[str]


class Desk:
    """Jobs that wait and run, cancellations, errands. Thread-safe.

    Attributes:
        waiting: jobs that have not begun.
        running: jobs that have; the engine's thread alone changes which.
        forecast: of when jobs are done.
    """

    def __init__(
        self, name: str, limits: EngineLimits, *, open_to: Callable[[str, Counter[str]], bool]
    ) -> None:
        """Makes an empty one, which is closed.

        Args:
            name: of the model, for messages.
            limits: of what may wait.
            open_to: whether another job of an owner may begin; told how many each has.
        """
        self._name, self._open_to = name, open_to
        self._wake = threading.Condition()
        self.waiting = Admission(
            max_queue=limits.max_queue,
            max_queue_tokens=limits.max_queue_tokens,
            max_owner_queue=limits.max_owner_queue,
            max_owner_queue_tokens=limits.max_owner_queue_tokens,
        )
        self.forecast = Forecast()
        self.running: list[Work] = []
        self._cancelled: set[str] = set()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._accepting = False
        self._stopping = False

    # What callers do

    def submit(self, job: Job) -> None:
        """See ``Engine.submit``."""
        work = Work(job, time.monotonic())
        with self._wake:
            work.foretold_s = self._check_room(
                job.owner, work.size, job.deadline, now=work.submitted
            )
            self.waiting.put(work)
            if job.timeline is not None:
                job.timeline.submitted = work.submitted
            self._wake.notify()

    def check_room(self, owner: str, deadline: float | None) -> None:
        """See ``Engine.check_room``."""
        with self._wake:
            self._check_room(owner, 1, deadline, now=time.monotonic())

    def _check_room(
        self, owner: str, size: int, deadline: float | None, *, now: float
    ) -> float | None:
        """In how many seconds a job would be done, which is accepted now."""
        if not self._accepting:
            raise EngineStopped(f"model {self._name!r} takes no requests: it is not running")
        retry_after_s = self.forecast.retry_after_s(self.waiting.tokens)
        foretold_s = self.forecast.foretell(size, self.waiting.before(owner))
        others_wait = len(self.waiting) > 0
        if deadline is not None and (others_wait or any(not w.finished for w in self.running)):
            self.forecast.check(foretold_s, deadline - now, retry_after_s, others_wait=others_wait)
        self.waiting.check(owner, size, retry_after_s=retry_after_s)
        return foretold_s

    def cancel(self, job_id: str) -> int | None:
        """See ``Engine.cancel``."""
        with self._wake:
            for work in [*self.waiting, *self.running]:
                if work.job.job_id == job_id and not work.finished:
                    self._cancelled.add(job_id)
                    self._wake.notify()
                    solved: int = work.stats.solved_tokens
                    return solved
        return None

    def leave(self, errand: Callable[[], T], future: "Future[T]") -> bool:
        """Leaves an errand to be done between two turns; False when there are no more."""
        with self._wake:
            if self._stopping:
                return False
            self._errands.append((errand, future))
            self._wake.notify()
            return True

    @property
    def waiting_jobs(self) -> int:
        """How many jobs wait."""
        return len(self.waiting)

    def works(self) -> list[Work]:
        """All jobs, those that wait first."""
        with self._wake:
            return [*self.waiting, *self.running]

    def problems(self) -> list[str]:
        """Where the queue does not add up."""
        with self._wake:
            return self.waiting.problems()

    def state(self, *, is_full: bool) -> DeskState:
        """How much there is now; ``is_full`` says that no sequence may begin."""
        with self._wake:
            begun = Counter(work.job.owner for work in self.running)
            causes = Counter[str]()
            for owner, jobs in Counter(work.job.owner for work in self.waiting).items():
                may_begin = self._open_to(owner, begun)
                causes["places" if is_full else "turn" if may_begin else "share"] += jobs
            return DeskState(len(self.running), len(self.waiting), self.waiting.tokens, causes)

    # Its opening and closing

    def open(self) -> None:
        """Takes jobs from now on."""
        with self._wake:
            self._accepting = True

    def close(self) -> None:
        """Takes no more jobs."""
        with self._wake:
            self._accepting = False
            self._wake.notify()

    def wait_empty(self, timeout_s: float) -> None:
        """Waits until there are no jobs, for so long at most."""
        with self._wake:
            self._wake.wait_for(lambda: not self.waiting and not self.running, timeout=timeout_s)

    def end(self) -> None:
        """Has the thread end; errands from now on are done by those who have them."""
        with self._wake:
            self._accepting, self._stopping = False, True
            self._wake.notify_all()

    # What the engine's thread does

    def wait_for_work(self, timeout_s: float) -> bool:
        """Waits until there is some, for so long at most; False at the end."""
        with self._wake:
            if not (self.waiting or self.running or self._errands or self._stopping):
                self._wake.wait(timeout_s)
            return not self._stopping

    def do_errands(self) -> None:
        """Does what was left to be done."""
        while self._errands:
            do(*self._errands.popleft())

    def take_cancelled(self) -> tuple[list[Work], set[str]]:
        """All jobs, and the ids of those that were cancelled since last asked."""
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
            return [*self.waiting, *self.running], cancelled

    def begin_next(self) -> Work | None:
        """The next job, which runs from now on; None where none may begin."""
        with self._wake:
            # A job whose candidates wait holds memory, but no place: it counts all the same.
            begun = Counter(work.job.owner for work in self.running)
            work = self.waiting.take(lambda owner: self._open_to(owner, begun))
            if work is not None:
                self.running.append(work)
            return work

    def forget_finished(self) -> None:
        """Lets go of jobs that have ended."""
        with self._wake:
            for work in [*self.waiting, *self.running]:
                if work.finished:
                    self.forecast.end(work)
                    work.let_go()
            self.running = [work for work in self.running if not work.finished]
            self.waiting.drop_finished()
            if not self.waiting and not self.running:
                self._wake.notify_all()


def do(errand: Callable[[], T], future: "Future[T]") -> None:
    """Does an errand, unless nobody waits for it any more; what it raises is for those who do."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        with torch.inference_mode():
            future.set_result(errand())
    except Exception as error:
        future.set_exception(error)
