"""The streams of the synchronous client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from client import _decode, _encode, resources, results
from client._generation import GenerationLog, text_of
from client.errors import from_call
from client.options import StreamPiece
from deqlm.v1 import scoring_pb2


class Generation:
    """The tokens of one Generate call, as they come.

    Iterate for tokens, over `texts()` for text, or over `events()` for everything. Leaving it as a
    context manager, or `close()`, cancels the call, which then leaves a session as it was.
    """

    def __init__(self, call: Any) -> None:
        """Wrap the call."""
        self._call = call
        self._log = GenerationLog()

    def __enter__(self) -> Self:
        """Use as a context manager; leaving it cancels what is not finished."""
        return self

    def __exit__(
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

    def events(self) -> Iterator[results.GenerationEvent]:
        """Yield every event; one iteration in all."""
        try:
            for message in self._call:
                event = _decode.generation_event(message)
                if event is not None:
                    self._log.observe(event)
                    yield event
        except grpc.RpcError as error:
            raise from_call(error) from error
        finally:
            self.close()

    def __iter__(self) -> Iterator[results.GeneratedToken]:
        """Yield the tokens; text held back to the end is in `finished`."""
        return (event for event in self.events() if isinstance(event, results.GeneratedToken))

    def texts(self) -> Iterator[str]:
        """Yield the generated text piece by piece, without empty pieces."""
        return (text for text in map(text_of, self.events()) if text)

    def result(self) -> results.GenerationResult:
        """Read to the end and return the whole."""
        for _ in self.events():
            pass
        return self._log.result()


class Requests:
    """Messages of a score stream; keeps what the caller's iterator raises for the reader."""

    def __init__(
        self, config: scoring_pb2.ScoreStreamRequest, pieces: Iterable[StreamPiece]
    ) -> None:
        """Send the config first, then the pieces."""
        self._config: scoring_pb2.ScoreStreamRequest | None = config
        self._pieces = iter(pieces)
        self.on_failure: Callable[[], object] = lambda: None
        self.failure: BaseException | None = None

    def __iter__(self) -> Self:
        """Is its own iterator."""
        return self

    def __next__(self) -> scoring_pb2.ScoreStreamRequest:
        """Make the next message; a failure of the caller's iterator cancels the call."""
        if self._config is not None:
            config, self._config = self._config, None
            return config
        try:
            return _encode.stream_piece(next(self._pieces))
        except StopIteration:
            raise
        except BaseException as error:  # re-raised by the reader; grpc would only log it
            self.failure = error
            self.on_failure()
            raise StopIteration from error


def streamed_scores(call: Any, requests: Requests) -> Generator[results.StreamedScore, None, None]:
    """Yield the answers; what the caller's iterator raised is raised here."""
    try:
        for message in call:
            yield _decode.streamed_score(message)
    except grpc.RpcError as error:
        if requests.failure is None:
            raise from_call(error) from error
    finally:
        call.cancel()
    if requests.failure is not None:
        raise requests.failure


def becomes_serving(watch: Any) -> bool:
    """Read a health watch until it says serving; False when the connection broke before that."""
    try:
        return any(_decode.health(message) is resources.HealthStatus.SERVING for message in watch)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise from_call(error) from error
    finally:
        watch.cancel()
