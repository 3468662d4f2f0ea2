"""Calls with idempotency keys: done once, however often they are sent."""

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from server.engine.errors import Cancelled, DeadlineExceeded, TooLate
from server.engine.snapshots import Answer
from server.errors import AnswerNotKept, KeyReused

M = TypeVar("M", bound=Message)
Send = Callable[[Any], Awaitable[None]]
_LENGTH = struct.Struct("<I")


class Attempt:
    """A call that is under way, for whoever sends it; it goes on when they go away.

    Attributes:
        request: digest of what was asked.
        responses: so far.
    """

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.responses: list[Any] = []
        self._news = asyncio.Event()
        self._is_over = False
        self._task: asyncio.Task[None] | None = None

    def start(self, body: Callable[["Attempt"], Awaitable[None]]) -> "asyncio.Task[None]":
        """Begin."""
        self._task = asyncio.ensure_future(self._run(body))
        return self._task

    async def _run(self, body: Callable[["Attempt"], Awaitable[None]]) -> None:
        try:
            await body(self)
        finally:
            self._is_over = True
            self._news.set()

    async def send(self, response: Any) -> None:
        """Have those who follow get one more response."""
        self.responses.append(response)
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def follow(self, send: Send) -> None:
        """Send all responses on, from the first to the last; raises what ends the call."""
        assert self._task is not None, "start comes first"
        sent = 0
        while True:
            news = self._news
            while sent < len(self.responses):
                await send(self.responses[sent])
                sent += 1
            if self._is_over:  # nothing came between: there was no wait since the last look
                await asyncio.shield(self._task)
                return
            await news.wait()


class Attempts:
    """All calls with idempotency keys that are under way, by session and key."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def once(
        self,
        session_id: str,
        key: str,
        request: Message,
        body: Callable[[Attempt], Awaitable[None]],
        send: Send,
    ) -> None:
        """Do a call, or follow the one that is under way.

        One that is followed may be ended, as its own caller is not let in any more or has had
        its time: then it is done for this one, unless that has been told a part of it.

        Raises:
            KeyReused: that one asked for something else.
            Cancelled, DeadlineExceeded, TooLate: it was ended, or there was no time for it.
        """
        name, digest, is_told, is_own = (session_id, key), digest_of(request), False, False

        async def tell(response: Any) -> None:
            nonlocal is_told
            is_told = True
            await send(response)

        while True:
            attempt = self._running.get(name)
            if attempt is None:
                attempt, is_own = self._begin(name, digest, body), True
            elif attempt.request != digest:
                raise KeyReused(key)
            try:
                await attempt.follow(tell)
            except (Cancelled, DeadlineExceeded, TooLate):
                if is_own or is_told:
                    raise
            else:
                return

    def _begin(
        self, name: tuple[str, str], digest: bytes, body: Callable[[Attempt], Awaitable[None]]
    ) -> Attempt:
        attempt = self._running[name] = Attempt(digest)

        async def run(attempt: Attempt) -> None:
            try:
                await body(attempt)
            finally:
                del self._running[name]  # before those who follow hear of the end

        task = attempt.start(run)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return attempt

    def __len__(self) -> int:
        return len(self._tasks)

    async def wait(self, timeout_s: float) -> None:
        """Wait for those that go on without their clients."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _end(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left to be told


def digest_of(request: Message) -> bytes:
    """Of what is asked."""
    data = request.SerializeToString(deterministic=True)
    return hashlib.blake2b(data, digest_size=16).digest()


def to_answer(key: str, request: Message, responses: list[Any]) -> Answer:
    """What is kept of a call that was done."""
    parts = [response.SerializeToString() for response in responses]
    data = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return Answer(key, digest_of(request), data)


def from_answer(answer: Answer, request: Message, kind: type[M]) -> list[M]:
    """The responses of a call that was done.

    Raises:
        KeyReused: it asked for something else.
        AnswerNotKept: they are not there any more.
    """
    if answer.request != digest_of(request):
        raise KeyReused(answer.key)
    if answer.data is None:
        raise AnswerNotKept(answer.key)
    try:
        return _unpacked(answer.data, kind)
    except (struct.error, DecodeError) as error:  # of a store that somebody else has written to
        raise AnswerNotKept(answer.key) from error


def _unpacked(data: bytes, kind: type[M]) -> list[M]:
    found, begin = [], 0
    while begin < len(data):
        (size,) = _LENGTH.unpack_from(data, begin)
        begin += _LENGTH.size
        found.append(kind.FromString(data[begin : begin + size]))
        begin += size
    return found
