"""One gRPC call, as the servicers see it."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import grpc

from server import request_ids
from server.engine.errors import Cancelled, DeadlineExceeded, NotConverged
from server.engine.snapshots import TOKEN_BYTES
from server.engine.timeline import Timeline
from server.errors import SlowReader
from server.events import Events
from server.registry import Registry
from server.security.principals import Principal
from server.security.quotas import Charge, Meter
from server.tracecontext import TraceContext, read_metadata
from server.tracing.current import Spans

OWNER_KEY = "deqlm-owner"
ACCEPTED_KEY = "deqlm-accepted"

_FAILED_ON_ITS_WAY = "ExecuteBatchError"
"""Name of gRPC's error, which is not public, for what can be sent no more."""

_BROUGHT_ON = (asyncio.CancelledError, Cancelled, DeadlineExceeded, NotConverged, SlowReader)
"""Failures of work that was done, or would have been, had its client let it."""

_serials = itertools.count(1)
"""Two calls may have one request id: a client made it."""


@dataclass(slots=True)
class Call:
    """A call that is being answered.

    Attributes:
        context: of gRPC.
        method: its name, without the service.
        request_id: its client's or made here; in logs, error details and trailing metadata.
        owner: of the sessions it may see.
        sharer: whom its jobs count for where jobs share the engine: the owner, or the caller's
            host where it names none.
        started: instant at which it came.
        deadline: instant at which the caller stops waiting, or None.
        model: that it turned out to be about, for metrics.
        finished: reason for which it ended in an orderly way, for metrics.
        principal: who called; None before that is known.
        meter: what that may use; None for as much as there is.
        send_timeout_s: what its client gets to read a response.
        trace: the span that it belongs to, where its client named one.
        code: its status.
        reason: the contract's word for why it failed.
        ended: instant at which that was known.
        spans: that it is recorded by; None where it is not.
        goes_on: whether it is done also when its client goes away.
        watch: has work for its caller be ended, when that would not be let in any more.
        serial: its own number, whatever its client calls it.
    """

    context: grpc.aio.ServicerContext[Any, Any]
    method: str
    request_id: str
    owner: str
    sharer: str
    started: float
    deadline: float | None
    model: str = ""
    finished: str = ""
    principal: Principal | None = None
    meter: Meter | None = None
    send_timeout_s: float = 30.0
    trace: TraceContext | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    ended: float = 0.0
    spans: Spans | None = None
    goes_on: bool = False
    watch: Callable[[Callable[[], object]], AbstractContextManager[object]] | None = None
    serial: int = field(default_factory=lambda: next(_serials))
    _jobs: int = field(default=0)

    @classmethod
    def begin(cls, context: grpc.aio.ServicerContext[Any, Any], method: str) -> "Call":
        """Read a call's metadata and deadline."""
        now = time.monotonic()
        remaining_s: float | None = context.time_remaining()
        metadata = context.invocation_metadata() or ()
        given = next((value for key, value in metadata if key == OWNER_KEY), "")
        owner = given if isinstance(given, str) else given.decode("latin-1")
        return cls(
            context=context,
            method=method,
            request_id=request_ids.read_metadata(metadata),
            owner=owner,
            sharer=f"owner {owner}" if owner else f"peer {_host(context.peer())}",
            started=now,
            deadline=None if remaining_s is None else now + remaining_s,
            trace=read_metadata(metadata),
        )

    def check_deadline(self) -> None:
        """Raises DeadlineExceeded if it has passed."""
        if self.is_late():
            raise DeadlineExceeded("the deadline passed before the call began")

    def is_late(self, *, within_s: float = 0.0) -> bool:
        """Whether the deadline has passed, or will ``within_s``."""
        return self.deadline is not None and time.monotonic() + within_s >= self.deadline

    def next_job_id(self) -> str:
        """An id for one more job of this call."""
        self._jobs += 1
        return f"{self.request_id}-{self.serial}-{self._jobs}"

    def timeline(self) -> Timeline | None:
        """For its next job, once the one before is over; None where it is not recorded."""
        return None if self.spans is None else self.spans.timeline()

    @property
    def trace_id(self) -> str:
        """Of its trace; empty without one."""
        return "" if self.trace is None else self.trace.trace_id

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What its client is told at its end, however it ends."""
        return ((request_ids.KEY, self.request_id),)

    @contextmanager
    def charged(self, count: int, events: Events, *, more: int = 0) -> Iterator[Charge]:
        """Work on tokens, for which its principal is charged.

        What it may take at most is taken before it begins, so that calls side by side do not
        overspend, and what it did not use is given back: all of it where the server fails the
        work. Where the client ends it, by going away or by its own bounds, it has paid for what
        of its input was solved by then.

        Args:
            count: tokens of input.
            events: of the job that is made of them, if one is.
            more: that it may draw.

        Raises:
            QuotaExceeded: there are not so many left; nothing was taken.
        """
        charge, meter = Charge(count), self.meter
        if meter is not None:
            meter.take_tokens(count + more)
        try:
            yield charge
        except _BROUGHT_ON:
            if events.solved is not None:
                charge.used -= max(0, count - events.solved)
            raise
        except BaseException:
            charge.used = 0
            raise
        finally:
            if meter is not None:
                meter.give_back(count + more - charge.used)

    @contextmanager
    def paid(self, count: int) -> Iterator[None]:
        """What will take the solving of so many tokens, paid for unless it fails.

        Raises:
            QuotaExceeded: there are not so many left; nothing was taken.
        """
        if self.meter is None or not count:
            yield
            return
        self.meter.take_tokens(count)
        try:
            yield
        except BaseException:
            self.meter.give_back(count)
            raise

    def watched(self, end: Callable[[], object]) -> AbstractContextManager[object]:
        """Work that goes on without its client: ``end`` is to end it once that may not call.

        Ended so, and not by ending the task that waits for it, it is done or not: what is done
        is also kept, to be told to those who send the call again.
        """
        is_looked_at = self.goes_on and self.watch is not None
        return self.watch(end) if is_looked_at and self.watch else nullcontext()

    def check_room(self, registry: Registry, *, tokens: int = 0) -> None:
        """Look whether its principal may have one more session; to be made before anything waits.

        Args:
            registry: that has its sessions.
            tokens: that the new one holds.

        Raises:
            QuotaExceeded: it may not.
        """
        if self.meter is not None:
            held = registry.usage(self.owner)
            self.meter.check_session(
                held=held.sessions,
                held_bytes=held.bytes,
                more_bytes=held.more_bytes + TOKEN_BYTES * tokens,
            )

    async def accept(self) -> None:
        """Send the headers now: the client learns that its call has begun, before any answer.

        A refusal comes with headers of its own; what these say tells the two apart.
        """
        with _cancelled_if_gone():
            await self.context.send_initial_metadata(((ACCEPTED_KEY, "1"),))

    async def send(self, response: Any) -> None:
        """Send one message of a stream.

        Servicers write instead of yielding: a cancelled call then always unwinds their frames.

        Raises:
            SlowReader: the client does not read; what it has yet to read stays bounded.
            CancelledError: it is gone.
        """
        try:
            async with asyncio.timeout(self.send_timeout_s):
                with _cancelled_if_gone():
                    await self.context.write(response)
        except TimeoutError as error:
            raise SlowReader(self.send_timeout_s) from error


@contextmanager
def _cancelled_if_gone() -> Iterator[None]:
    """Around what is sent: where the client leaves meanwhile, that is the end of the call.

    gRPC has what is on its way fail, and ends the call's task only then.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ == _FAILED_ON_ITS_WAY:
            raise asyncio.CancelledError("the client is gone") from error
        raise


def _host(peer: str) -> str:
    """A peer without its port, which is another one for every connection: ``ipv4:127.0.0.1``."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
