"""What the client of a stream has sent, read while earlier messages are being scored."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from deqlm.v1 import scoring_pb2

_READ_AHEAD = 256
"""Messages taken from the network before they are scored; more wait at the client."""
_LARGE_MESSAGE = 1 << 18
"""Bytes from which a message is the last one that is taken before it is its turn."""

Message = scoring_pb2.ScoreStreamRequest
Messages = AsyncIterator[Message]


class Inbox:
    """Reads a stream's messages while earlier ones are being scored."""

    def __init__(self, messages: Messages) -> None:
        # None is the client's half-close.
        self._queue: asyncio.Queue[Message | Exception | None] = asyncio.Queue(_READ_AHEAD)
        self._task = asyncio.create_task(self._read(messages))
        self.waits_since = math.inf
        """Instant since which the stream waits for its client; infinite while it does not."""

    async def next(self) -> Message | None:
        """The next message; None at the end. Raises what ``fail`` was given."""
        self.waits_since = time.monotonic()
        item = await self._queue.get()
        self.waits_since = math.inf
        self._queue.task_done()
        return self._opened(item)

    @property
    def is_empty(self) -> bool:
        """Whether ``next`` would wait."""
        return self._queue.empty()

    def fail(self, error: Exception) -> None:
        """Have ``next`` raise once the messages before are taken."""
        # A full inbox belongs to a stream that is not waiting: it meets the error elsewhere.
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(error)

    def close(self) -> None:
        """Read no more."""
        self._task.cancel()

    async def _read(self, messages: Messages) -> None:
        try:
            async for message in messages:
                await self._queue.put(message)
                if message.ByteSize() >= _LARGE_MESSAGE:
                    await self._queue.join()
        except Exception as error:  # whatever it is, the stream must not wait for more
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    @staticmethod
    def _opened(item: Message | Exception | None) -> Message | None:
        if isinstance(item, Exception):
            raise item
        return item
