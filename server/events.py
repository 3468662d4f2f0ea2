"""A job in an engine, and what comes of it, for the event loop."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from server.engine.engine import Engine
from server.engine.errors import EngineFailed
from server.engine.requests import GenerateJob, ScoreJob
from server.engine.results import TERMINAL, Event, Failed, Generated, Scored

E = TypeVar("E", Scored, Generated)

_log = logging.getLogger(__name__)


class Post:
    """Carries what engines' threads tell to the event loop.

    A call of f ends tokens of several streams: the loop is woken once for all that has come until
    it looks, as each time costs the engine a system call and the loop its turn at the interpreter.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sent: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._is_loop_told = False

    def send(self, queue: asyncio.Queue[Event], event: Event) -> None:
        """Put an event into a queue soon; called on any thread."""
        self._sent.append((queue, event))
        if self._is_loop_told:
            return
        self._is_loop_told = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            _log.debug("event %s came after the event loop's end", type(event).__name__)

    def _deliver(self) -> None:
        self._is_loop_told = False  # first: what is sent from here on is delivered or tells again
        while self._sent:
            queue, event = self._sent.popleft()
            queue.put_nowait(event)


class Events:
    """A job's events, carried from the engine's thread to the event loop.

    Attributes:
        ended: whether the last one has been seen.
        solved: tokens solved for a job that was broken off; None where it was not.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.ended = False
        self.solved: int | None = None

    def sink(self, event: Event) -> None:
        """Take an event; called on the engine's thread."""
        self._post.send(self._queue, event)

    async def next(self) -> Event:
        """Wait for the next event. Raises the error of a job that failed."""
        event = await self._queue.get()
        self.ended = isinstance(event, TERMINAL)
        if isinstance(event, Failed):
            self.solved = event.solved
            raise event.error
        return event

    async def last(self, kind: type[E]) -> E:
        """Wait for the event that ends the job in an orderly way. Raises its error otherwise."""
        while True:
            event = await self.next()
            if isinstance(event, kind):
                return event


def check_room(engine: Engine, owner: str, deadline: float | None) -> None:
    """Look whether an engine would take a job, before anything is read for it.

    Raises:
        QueueFull, EngineStopped, EngineFailed: as ``submitted``.
    """
    _check_alive(engine)
    engine.check_room(owner, deadline)


@contextmanager
def submitted(engine: Engine, job: ScoreJob | GenerateJob, events: Events) -> Iterator[Events]:
    """A job that is in the engine for as long as its caller is interested in it.

    Raises:
        QueueFull, EngineStopped: the engine does not take it.
        EngineFailed: the engine's thread is gone, so that nothing would ever come of it.
    """
    _check_alive(engine)
    engine.submit(job)
    try:
        yield events
    finally:
        if not events.ended:
            events.solved = engine.cancel(job.job_id)


def _check_alive(engine: Engine) -> None:
    if not engine.alive:
        raise EngineFailed(f"the thread of model {engine.name!r} is gone")
