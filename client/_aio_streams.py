"""The streams of the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from client import _decode, _encode, resources, results
from client._generation import GenerationLog, text_of
from client.errors import Cancelled, DeqlmError, Unavailable, from_call
from client.options import StreamPiece
from deqlm.v1 import scoring_pb2


class AsyncGeneration:
    """The tokens of one Generate call, as they come.

    Iterate for tokens, over `texts()` for text, or over `events()` for everything. Leaving it as a
    context manager, or `close()`, cancels the call, which then leaves a session as it was.
    """

    def __init__(self, call: Any) -> None:
        """Wrap the call."""
        self._call = call
        self._log = GenerationLog()

    async def __aenter__(self) -> Self:
        """Use as a context manager; leaving it cancels what is not finished."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the call unless it is over."""
        self.close()

    @property
    def started(self) -> results.GenerationStarted | None:
        """The first event, once it has come."""
        return self._log.started

    @property
    def finished(self) -> results.GenerationFinished | None:
        """The last event, once it has come."""
        return self._log.finished

    def close(self) -> None:
        """Cancel the call unless it is over."""
        self._call.cancel()

    async def events(self) -> AsyncIterator[results.GenerationEvent]:
        """Yield every event; one iteration in all."""
        try:
            async for message in _read(self._call):
                event = _decode.generation_event(message)
                if event is not None:
                    self._log.observe(event)
                    yield event
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[results.GeneratedToken]:
        """Yield the tokens; text held back to the end is in `finished`."""
        async for event in self.events():
            if isinstance(event, results.GeneratedToken):
                yield event

    async def texts(self) -> AsyncIterator[str]:
        """Yield the generated text piece by piece, without empty pieces."""
        async for event in self.events():
            if text := text_of(event):
                yield text

    async def result(self) -> results.GenerationResult:
        """Read to the end and return the whole."""
        async for _ in self.events():
            pass
        return self._log.result()


_ACCEPT_S = 5.0
"""How long a score stream waits for the server's headers before it sends text all the same."""
_STATUS_S = 0.2
"""How long it waits for a status after headers that do not say that the stream is accepted."""
_ACCEPTED_KEY = "deqlm-accepted"


class Requests:
    """Messages of a score stream; keeps what the caller's iterator raises for the reader."""

    def __init__(
        self,
        config: scoring_pb2.ScoreStreamRequest,
        pieces: Iterable[StreamPiece] | AsyncIterable[StreamPiece],
    ) -> None:
        """Send the config first, then the pieces."""
        self._config = config
        self._pieces = pieces
        self.call: Any = None
        self.on_failure: Callable[[], object] = lambda: None
        self.failure: Exception | None = None

    async def messages(self) -> AsyncIterator[scoring_pb2.ScoreStreamRequest]:
        """Yield the messages; a failure of the caller's iterator cancels the call."""
        yield self._config
        if not await self._is_accepted():
            return
        try:
            async for piece in each(self._pieces):
                yield _encode.stream_piece(piece)
        except Exception as error:  # re-raised by the reader; grpc would only log it
            self.failure = error
            self.on_failure()

    async def _is_accepted(self) -> bool:
        """Wait until the server has taken the config; False when it has ended the call.

        A message sent to a call that has just ended would make grpc report an error of its own in
        place of the server's.
        """
        with contextlib.suppress(TimeoutError):  # behind a proxy that keeps headers back
            headers = await asyncio.wait_for(
                asyncio.shield(self.call.initial_metadata()), _ACCEPT_S
            )
            if _ACCEPTED_KEY in dict(headers or ()):
                return True
            # A refusal's headers and status come together, but one is told before the other.
            await asyncio.wait_for(asyncio.shield(self.call.code()), _STATUS_S)
        return not self.call.done()


async def streamed_scores(
    call: Any, requests: Requests
) -> AsyncGenerator[results.StreamedScore, None]:
    """Yield the answers; what the caller's iterator raised is raised here."""
    try:
        async for message in _read(call):
            yield _decode.streamed_score(message)
    except DeqlmError:
        if requests.failure is None:
            raise
    finally:
        call.cancel()
    if requests.failure is not None:
        raise requests.failure


async def becomes_serving(watch: Any) -> bool:
    """Read a health watch until it says serving; False when the connection broke before that."""
    try:
        async for message in _read(watch):
            if _decode.health(message) is resources.HealthStatus.SERVING:
                return True
    except Unavailable:
        pass
    finally:
        watch.cancel()
    return False


async def _read(call: Any) -> AsyncIterator[Any]:
    """Yield a call's messages, with errors of this package."""
    try:
        async for message in call:
            yield message
    except grpc.RpcError as error:
        raise from_call(error) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Cancelled("the call was cancelled by this client") from None


async def each(
    pieces: Iterable[StreamPiece] | AsyncIterable[StreamPiece],
) -> AsyncIterator[StreamPiece]:
    """Yield the pieces of either kind of iterator."""
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece
