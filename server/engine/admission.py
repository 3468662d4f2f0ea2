"""Who is let in next, and who must wait: the queue of jobs, and the places they run in.

No torch, no clock, no threads: the engine's lock is around it.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from server.engine.errors import InvalidRequest, QueueFull
from server.engine.fair import PRIORITY_WEIGHTS, Group, Sharer
from server.engine.work import Work


@dataclass(frozen=True, slots=True)
class Places:
    """The places in which sequences run, and who may take one.

    Attributes:
        total: of all.
    """

    total: int

    @property
    def kept(self) -> int:
        """A quarter: for owners that have no place, so that one who has many leaves them some."""
        return self.total // 4

    @property
    def for_candidates(self) -> int:
        """How many may be candidates': a job need not wait for those of its own owner either."""
        return self.total - 2 * self.kept

    def open_to(self, owner: str, taken: Counter[str]) -> bool:
        """Whether one is free for an owner; ``taken`` counts places by owner."""
        return taken.total() + (self.kept if taken[owner] else 0) < self.total


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait.

    Attributes:
        whose: for messages.
        jobs: most jobs.
        tokens: most tokens; one job alone may have more.
    """

    whose: str
    jobs: int
    tokens: int

    def check(self, jobs: int, tokens: int, more: int, retry_after_s: float) -> None:
        """Looks whether one more job of ``more`` tokens may wait. Raises QueueFull."""
        if jobs >= self.jobs:
            raise QueueFull(
                f"waiting requests{self.whose} must be at most {self.jobs}, and that many are",
                retry_after_s=retry_after_s,
            )
        if jobs and tokens + more > self.tokens:
            raise QueueFull(
                f"waiting tokens{self.whose} must be at most {self.tokens}, "
                f"got {tokens} and {more} more",
                retry_after_s=retry_after_s,
            )


class Admission:
    """Jobs that wait, bounded by their number and their tokens.

    Owners have their turns by the priority of what they wait with, within an owner priorities
    have theirs, and jobs of one priority go in the order they came (``fair.py``). So nobody waits
    for all of another's jobs, and low priority waits long, but not for ever.
    """

    def __init__(
        self,
        *,
        max_queue: int,
        max_queue_tokens: int,
        max_owner_queue: int | None = None,
        max_owner_queue_tokens: int | None = None,
    ) -> None:
        """Takes the bounds of all that waits, and of what one owner has wait."""
        self._all = Bounds("", max_queue, max_queue_tokens)
        self._own = Bounds(
            " of one owner",
            max_queue if max_owner_queue is None else max_owner_queue,
            max_queue_tokens if max_owner_queue_tokens is None else max_owner_queue_tokens,
        )
        self._owned: dict[str, tuple[int, int]] = {}
        self._queues: dict[tuple[str, int], tuple[deque[Work], Sharer]] = {}
        self._owners = Group()
        self._count = self._tokens = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Work]:
        for queue, _ in self._queues.values():
            yield from queue

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def before(self, owner: str) -> int:
        """Tokens that may go before those of one more job of an owner, as owners take turns."""
        _, own = self._owned.get(owner, (0, 0))
        return min(self._tokens, own * len({*self._owned, owner}))

    def check(self, owner: str, size: int, *, retry_after_s: float = 1.0) -> None:
        """Looks whether one more job may wait.

        Args:
            owner: whose it is.
            size: its tokens.
            retry_after_s: what a caller is told that is refused.

        Raises:
            QueueFull: too many jobs or tokens are waiting.
        """
        jobs, tokens = self._owned.get(owner, (0, 0))
        self._all.check(self._count, self._tokens, size, retry_after_s)
        self._own.check(jobs, tokens, size, retry_after_s)

    def put(self, work: Work) -> None:
        """Lets a job wait.

        Raises:
            QueueFull: too many jobs or tokens are waiting.
            InvalidRequest: there is no such priority.
        """
        self.check(work.job.owner, work.size)
        jobs, tokens = self._owned.get(work.job.owner, (0, 0))
        owner, priority = work.job.owner, work.job.priority
        most = len(PRIORITY_WEIGHTS) - 1
        if not 0 <= priority <= most:
            raise InvalidRequest("priority", f"priority must be in [0, {most}], got {priority}")
        if (owner, priority) not in self._queues:
            weight = PRIORITY_WEIGHTS[priority]
            sharer = self._owners.group(owner, weight).join(priority, weight)
            self._queues[owner, priority] = deque[Work](), sharer
        self._queues[owner, priority][0].append(work)
        self._owned[owner] = jobs + 1, tokens + work.size
        self._count += 1
        self._tokens += work.size

    def take(self, may_run: Callable[[str], bool]) -> Work | None:
        """The job whose turn it is, of an owner for whom there is room; None when none may run."""
        open_to = {owner: may_run(owner) for owner, _ in self._queues}
        for (owner, _), (queue, sharer) in self._queues.items():
            sharer.want = len(queue) if open_to[owner] else 0
        self._owners.gather()
        if not self._owners.want:
            return None
        self._owners.divide(1)
        for queue, sharer in self._queues.values():
            if sharer.given:
                work = queue[0]
                self._drop([work])
                return work
        raise AssertionError("somebody was given the turn")

    def drop_finished(self) -> None:
        """Forgets jobs that ended while they waited."""
        self._drop([work for work in self if work.finished])

    def problems(self) -> list[str]:
        """Where the counts of what waits are not what waits."""
        works = list(self)
        tokens = sum(work.size for work in works)
        found = []
        if self._count != len(works):
            found.append(f"the queue counts {self._count} jobs, and {len(works)} wait")
        if self._tokens != tokens:
            found.append(f"the queue counts {self._tokens} tokens, and {tokens} wait")
        owned = Counter[str]()
        for work in works:
            owned[work.job.owner] += work.size
        if {owner: size for owner, (_, size) in self._owned.items()} != dict(owned):
            found.append(f"the queue counts {self._owned} by owner, and {dict(owned)} wait")
        if any(not queue for queue, _ in self._queues.values()):
            found.append("the queue has an owner with no jobs")
        return found

    def _drop(self, works: Iterable[Work]) -> None:
        for work in works:
            owner, priority = work.job.owner, work.job.priority
            queue, _ = self._queues[owner, priority]
            queue.remove(work)
            self._count -= 1
            self._tokens -= work.size
            jobs, tokens = self._owned[owner]
            self._owned[owner] = jobs - 1, tokens - work.size
            if jobs == 1:
                del self._owned[owner]
            if not queue:
                del self._queues[owner, priority]
                self._owners.leave(owner, priority)
