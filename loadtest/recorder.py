"""``deqlm loadtest record``: passes calls on to a server as they are, and notes when they came."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import grpc

from client._addresses import is_here
from client._channel import OPTIONS
from client.credentials import channel_credentials
from loadtest.errors import LoadTestError
from loadtest.observed import Observed, Observer
from loadtest.settings import tls_of
from loadtest.stages import Planned
from loadtest.target import Target
from loadtest.traces import to_line

_OWN: Final = ("grpc-", ":", "user-agent", "content-type", "te")
"""Metadata that each connection has for itself."""
_GRACE_S: Final = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Target):
    """What is recorded, and where.

    Attributes:
        out: file to write the arrivals to, which must not be there yet
        listen: HOST:PORT at which clients find the recorder in place of the server; port 0 takes a
            free one
        seconds: seconds after which it ends; none for at an interrupt
    """

    out: Path
    listen: str = "127.0.0.1:50052"
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Check what would put somebody's token at risk, and the bounds."""
        if not is_here(self.listen):
            raise ValueError(f"listen must be an address of this machine, got {self.listen}")
        is_encrypted = tls_of(self) is not None
        if not (is_encrypted or is_here(self.address) or self.send_token_unencrypted):
            raise ValueError(
                f"address: calls and their tokens must not go to {self.address} unencrypted; give "
                "tls, or send_token_unencrypted where the way is safe"
            )
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be a number above 0, got {self.seconds:g}")


async def record(options: Recording, say: Say) -> int:
    """Record until the time is over; returns the exit code.

    Raises:
        LoadTestError: the file is there already, or the address is taken.
        InvalidArgument: a certificate cannot be read.
    """
    tls = tls_of(options)
    channel = (
        grpc.aio.insecure_channel(options.address, options=OPTIONS)
        if tls is None
        else grpc.aio.secure_channel(options.address, channel_credentials(tls), options=OPTIONS)
    )
    with _new(options.out) as file:
        async with channel:
            recorder = Recorder(channel, file)
            port = await recorder.start(options.listen)
            host = options.listen.rpartition(":")[0]
            say(f"recording at {host}:{port}, calls go on to {options.address}")
            try:
                await asyncio.sleep(options.seconds if options.seconds else 10**9)
            finally:
                await recorder.stop()
                say(f"recorded {recorder.count} arrivals in {options.out}")
    return 0


def _new(path: Path) -> IO[str]:
    try:
        return path.open("x", encoding="utf-8")
    except FileExistsError:
        raise LoadTestError(f"out must be a new file, got {path}") from None
    except OSError as error:
        raise LoadTestError(f"out cannot be made at {path}: {error.strerror}") from None


class Recorder(grpc.GenericRpcHandler):
    """A server that answers every call with what another one answers."""

    def __init__(self, channel: grpc.aio.Channel, file: IO[str]) -> None:
        """Take the way to the server, and the file of arrivals."""
        self.count = 0
        self._channel, self._file = channel, file
        self._observer = Observer()
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        self._began_s: float | None = None

    async def start(self, listen: str) -> int:
        """Listen; the port. Raises LoadTestError."""
        try:
            port: int = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise LoadTestError(f"listen: {listen} cannot be listened at; is it taken?") from None
        await self._server.start()
        return port

    async def stop(self) -> None:
        """End; calls that are under way are cut off."""
        await self._server.stop(_GRACE_S)

    def service(self, handler_call_details: Any) -> Any:
        """Takes any method; messages stay bytes."""
        path = str(handler_call_details.method)
        return grpc.stream_stream_rpc_method_handler(functools.partial(self._relay, path))

    async def _relay(self, path: str, requests: AsyncIterator[bytes], context: Any) -> None:
        """One call, there and back."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        observed, cancel_s = Observed(path), None
        metadata = tuple(
            pair for pair in context.invocation_metadata() if not pair[0].startswith(_OWN)
        )
        method: Any = self._channel.stream_stream(path)
        call: Any = method(timeout=context.time_remaining(), metadata=metadata)
        sending = asyncio.ensure_future(_send(requests, call, observed))
        try:
            await self._answer(call, context, path)
        except asyncio.CancelledError:
            cancel_s = time.monotonic() - now_s
            raise
        finally:
            call.cancel()
            sending.cancel()
            self._note(observed, now_s - self._began_s, cancel_s)

    async def _answer(self, call: Any, context: Any, path: str) -> None:
        try:
            await context.send_initial_metadata(await call.initial_metadata())
            async for message in call:
                self._observer.answered(path, message)
                await context.write(message)
            context.set_trailing_metadata(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))

    def _note(self, observed: Observed, at_s: float, cancel_s: float | None) -> None:
        plan: Planned | None = self._observer.plan(observed, at_s, cancel_s)
        if plan is not None:
            self.count += 1
            self._file.write(to_line(plan))
            self._file.flush()  # a recording is ended in any way


async def _send(requests: AsyncIterator[bytes], call: Any, observed: Observed) -> None:
    """Pass the client's messages on."""
    # A call that has ended takes no more; how it ended is told by its answer.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async for message in requests:
            observed.message(message)
            await call.write(message)
        await call.done_writing()
