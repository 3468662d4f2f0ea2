"""What surrounds every call: an id, errors as statuses, metrics, logs, and the wait at the end."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from server.call import Call
from server.engine.errors import OutOfMemory, QueueFull
from server.errors import REFUSALS, SlowReader, rule_for, to_status
from server.logs import ABOUT, About
from server.metrics.counts import MEASURED, Metrics
from server.refusals import why
from server.security.errors import QuotaExceeded, SecurityError
from server.security.gate import Gate, before
from server.tracing.current import CURRENT, Tracer
from server.wire import checked, lenient

PACKAGE = "/deqlm.v1."
_MESSAGES = frozenset({"Score", "Generate"})
"""Methods of one request, whose work waits in the queue."""
_Code = grpc.StatusCode
_ABORTED = frozenset({_Code.CANCELLED, _Code.DEADLINE_EXCEEDED})
_CLOCK_SKEW_S = 0.1
"""A client counts its deadline from before the call was on its way: it gives up a bit earlier."""

_log = logging.getLogger(__name__)

Behaviour = Callable[[Any, Call], Awaitable[Any]]
Handler = Any
"""gRPC's RpcMethodHandler; its types do not say that the one found may be of any kind."""


class Guard(grpc.aio.ServerInterceptor):
    """Hands the servicers a ``Call`` in place of gRPC's context."""

    def __init__(
        self,
        metrics: Metrics,
        gate: Gate,
        *,
        send_timeout_s: float,
        logs_messages: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._metrics = metrics
        self._send_timeout_s = send_timeout_s
        self._logs_messages = logs_messages
        self._tracer = tracer
        self._gate = gate
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that are being answered."""
        return self._running

    @property
    def metered(self) -> int:
        """Those of them that count for somebody's quota."""
        return self._gate.metered

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call is running; False if some still are after ``timeout_s``."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call: to one of our services, or to one that asks who calls."""
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        is_ours = path.startswith(PACKAGE)
        if handler is None or (not is_ours and self._gate.is_open(path)):
            return handler
        method = path.rpartition("/")[2]
        try:
            self._gate.look_at(handler_call_details.invocation_metadata or ())
        except SecurityError as error:
            # Of any kind of method, as this one takes no message.
            return grpc.stream_stream_rpc_method_handler(
                functools.partial(self._refuse, method, error)
            )
        kind, behaviour = _behaviour(handler)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            functools.partial(self._run, behaviour, path)
            if is_ours
            else before(behaviour, method, self._gate.greeted, self._abort),
            request_deserializer=lenient(handler.request_deserializer)
            if is_ours
            else handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    async def _run(
        self,
        behaviour: Behaviour,
        path: str,
        request: Any,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Any:
        call = Call.begin(context, path.rpartition("/")[2])
        call.send_timeout_s = self._send_timeout_s
        # gRPC gives each call a task, and so a context, of its own.
        ABOUT.set(About(call.request_id, call.trace_id))
        context.set_trailing_metadata(call.trailing_metadata)
        self._running += 1
        self._idle.clear()
        self._metrics.call_began(call.method)
        try:
            async with self._gate.admitted(call, path):
                self._trace(call, path)
                call.check_deadline()
                result = await behaviour(checked(request), call)
            self._note_end(call, call.finished)
            _log_end(call, _Code.OK, logging.DEBUG)
            return result
        except asyncio.CancelledError:  # the caller went away, or the server is at its end
            is_late = call.is_late(within_s=_CLOCK_SKEW_S)
            code = _Code.DEADLINE_EXCEEDED if is_late else _Code.CANCELLED
            self._note_failure(call, code, why="the client waits no longer")
            raise
        except (SlowReader, SecurityError) as error:
            unread = error
        except Exception as error:  # whatever it is, the caller gets a status and the log the rest
            await self._abort(call, error)
        finally:
            if call.spans is not None:
                # Not now: its client waits for the answer.
                asyncio.get_running_loop().call_soon(call.spans.end, call)
            self._running -= 1
            self._metrics.call_over(call.method)
            if self._running == 0:
                self._idle.set()
        # Its status waits behind what the client does not read: the call is over all the same.
        await self._abort(call, unread)

    def _trace(self, call: Call, path: str) -> None:
        """Begin its spans, if there are to be any; only of callers that may call."""
        call.spans = None if self._tracer is None else self._tracer.begin(call, path)
        if call.spans is not None:
            CURRENT.set(call.spans)
            ABOUT.set(About(call.request_id, call.trace_id))

    async def _refuse(
        self,
        method: str,
        error: SecurityError,
        messages: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Answer a call of which no message was read."""
        await self._abort(Call.begin(context, method), error)

    async def _abort(self, call: Call, error: Exception) -> None:
        if isinstance(error, MemoryError):
            error = OutOfMemory()
        rule = rule_for(error)
        if rule.code is grpc.StatusCode.INTERNAL:
            _log.error("%s failed", call.method, exc_info=error, extra=_fields(call))
        if rule.code in REFUSALS:
            self._metrics.rejected(call.model, rule.reason)
        # A message of a stream comes long after its call.
        if isinstance(error, QueueFull | QuotaExceeded) and call.method in _MESSAGES:
            self._metrics.refused(call.model, time.monotonic() - call.started)
        if isinstance(error, QuotaExceeded):
            self._metrics.security.quota_exceeded(error.quota)
        reason = why(error, has_messages=self._logs_messages)
        self._note_failure(call, rule.code, reason=rule.reason, why=reason)
        status: status_pb2.Status = to_status(error, request_id=call.request_id)
        packed = rpc_status.to_status(status)
        trailing = (*packed.trailing_metadata, *call.trailing_metadata)
        await call.context.abort(rule.code, status.message, trailing)

    def _note_failure(
        self, call: Call, code: grpc.StatusCode, *, reason: str = "", why: str = ""
    ) -> None:
        call.code, call.reason = code, reason
        self._metrics.call_failed(call.model, call.method, code.name)
        self._note_end(call, "abort" if code in _ABORTED else "error")
        _log_end(call, code, logging.INFO, reason=reason, why=why)

    def _note_end(self, call: Call, reason: str) -> None:
        call.ended = time.monotonic()
        if call.method in MEASURED:
            seconds = call.ended - call.started
            self._metrics.call_ended(call.model, call.method, reason, seconds, call.trace)


def _fields(call: Call, **more: str | float) -> dict[str, str | float]:
    """What an entry about a call has beside its message."""
    return {
        "request_id": call.request_id,
        "trace_id": call.trace_id,
        "method": call.method,
        "model": call.model,
        "principal": call.principal.name if call.principal else "",
        **more,
    }


def _log_end(
    call: Call, code: grpc.StatusCode, level: int, *, reason: str = "", why: str = ""
) -> None:
    if not _log.isEnabledFor(level):
        return
    seconds = round(call.ended - call.started, 6)
    fields = _fields(call, code=code.name, reason=reason, seconds=seconds)
    said = " ".join([word for word in (reason, why and f"({why})") if word])
    ending = f": {said}" if said else ""
    _log.log(level, "%s ended with %s%s", call.method, code.name, ending, extra=fields)


def _behaviour(handler: Any) -> tuple[str, Behaviour]:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        behaviour: Behaviour | None = getattr(handler, kind)
        if behaviour is not None:
            return kind, behaviour
    raise TypeError(f"{handler!r} handles nothing")
