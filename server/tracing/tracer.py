"""Spans of calls: what the edge and the engine have measured, as OpenTelemetry wants it."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from server.call import Call
from server.engine.solve import SolveStats
from server.engine.timeline import Pieces, Timeline
from server.tracecontext import TraceContext
from server.tracing.current import Value
from server.tracing.exporting import Exporter

MOST_SPANS = 512
"""Of one call: a stream may be open for days."""
_MOST_WAITING, _BATCH, _DELAY_MS = 4096, 512, 1000
"""Spans that wait to be sent; further ones push the oldest out."""
_CLOSE_S = 2.0

# A refusal is no fault of the server, as the conventions have it.
_FAULTS = frozenset(
    {
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)


class OtelTracer:
    """Makes the spans of calls, and sends them."""

    def __init__(self, endpoint: str, *, ratio: float, version: str) -> None:
        """Begin to send.

        Args:
            endpoint: of the collector.
            ratio: share of calls that are traced where the client does not say.
            version: of the server.
        """
        self._exporter = Exporter(endpoint)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "deqlm", "service.version": version}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_MOST_WAITING,
                schedule_delay_millis=_DELAY_MS,
                max_export_batch_size=_BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("deqlm", version)

    def begin(self, call: Call, path: str) -> "CallSpans | None":
        """Begin a call's; it belongs to its span from now on, if that is recorded."""
        service, _, method = path.removeprefix("/").rpartition("/")
        clock = _Clock()
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=_parent(call.trace),
            kind=SpanKind.SERVER,
            start_time=clock.ns(call.started),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "deqlm.request_id": call.request_id,
            },
        )
        context = span.get_span_context()
        if not span.is_recording():
            return None
        call.trace = TraceContext(
            trace.format_trace_id(context.trace_id),
            trace.format_span_id(context.span_id),
            is_sampled=True,
            state=context.trace_state.to_header(),
        )
        return CallSpans(self._tracer, span, clock)

    def close(self) -> None:
        """Send what there is, for seconds at most; blocks."""
        ending = threading.Thread(target=self._provider.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)
        if ending.is_alive():
            self._exporter.give_up()
            ending.join(_CLOSE_S)


class CallSpans:
    """The spans of one call; lives on the event loop."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, clock: "_Clock") -> None:
        self._tracer, self._span, self._clock = tracer, span, clock
        self._left, self._dropped = MOST_SPANS, 0
        self._running: Timeline | None = None

    def timeline(self) -> Timeline:
        """For the next job; that of the job before is made spans."""
        self._tell_job()
        self._running = Timeline()
        return self._running

    @contextmanager
    def stage(self, name: str, **attributes: Value) -> Iterator[None]:
        """A span for as long as something takes; an error is noted by its kind alone."""
        begun, told = time.monotonic(), {f"deqlm.{key}": value for key, value in attributes.items()}
        try:
            yield
        except BaseException as error:
            told["error.type"] = type(error).__name__
            raise
        finally:
            self._tell(name, self._span, begun, time.monotonic(), told)

    def end(self, call: Call) -> None:
        """The call is over."""
        self._tell_job()
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": call.code.value[0],
                "deqlm.model": call.model,
                "deqlm.finished": call.finished,
                "deqlm.reason": call.reason,
                "deqlm.dropped_spans": self._dropped,
            }
        )
        if call.code.name in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, call.reason or call.code.name))
        self._span.end(self._clock.ns(call.ended or time.monotonic()))

    def _tell_job(self) -> None:
        job, self._running = self._running, None
        if job is None or job.submitted is None:
            return
        now = job.ended or time.monotonic()
        self._tell("queue", self._span, job.submitted, job.started or now, {})
        if job.started is None:
            return
        stats = {} if job.stats is None else {"deqlm.shared_tokens": job.stats.shared_tokens}
        self._tell_phase("prefill", job.started, job.prompt_solved or now, job.prefill, stats)
        if job.prompt_solved is not None:
            self._tell_phase("decode", job.prompt_solved, now, job.decode, {})

    def _tell_phase(
        self, name: str, begun: float, ended: float, pieces: Pieces, more: Mapping[str, Value]
    ) -> None:
        parts = list(pieces)
        total = sum([part.stats for part in parts], start=SolveStats())
        phase = self._tell(name, self._span, begun, ended, {**_attributes(total), **more})
        if phase is not None:
            for part in parts:
                self._tell("solve", phase, part.begun, part.ended, _attributes(part.stats))

    def _tell(
        self,
        name: str,
        parent: trace.Span,
        begun: float,
        ended: float,
        attributes: Mapping[str, Value],
    ) -> trace.Span | None:
        """A span that is over; None where the call has too many."""
        if self._left == 0:
            self._dropped += 1
            return None
        self._left -= 1
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(parent, Context()),
            start_time=self._clock.ns(begun),
            attributes=attributes,
        )
        span.end(self._clock.ns(ended))
        return span


class _Clock:
    """Makes instants of the monotonic clock the time of day, by how they lay when it was made."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def ns(self, instant: float) -> int:
        """Nanoseconds since the epoch."""
        return self._offset + round(instant * 1e9)


def _parent(told: TraceContext | None) -> Context:
    """The client's span; of the process's own context, nothing."""
    if told is None:
        return Context()
    context = SpanContext(
        trace_id=int(told.trace_id, 16),
        span_id=int(told.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if told.is_sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([told.state] if told.state else []),
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _attributes(stats: SolveStats) -> dict[str, Value]:
    """How tokens were solved."""
    return {
        "deqlm.tokens": stats.solved_tokens,
        "deqlm.calls": stats.nfe_total,
        "deqlm.nfe": stats.token_evaluations,
        "deqlm.residual": stats.residual_max,
        "deqlm.status": stats.status,
    }
