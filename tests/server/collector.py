"""A collector of OpenTelemetry: OTLP over gRPC, for real, on a port of this machine."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

WAIT_S = 60.0


@dataclass(frozen=True)
class Span:
    """A span as it was sent."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begun: int
    ended: int
    attributes: dict[str, Any]
    kind: int
    is_error: bool
    resource: dict[str, Any]
    state: str

    @property
    def seconds(self) -> float:
        """How long it was."""
        return (self.ended - self.begun) / 1e9


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self._spans: list[Span] = []
        self._news = threading.Condition()
        self.batches = 0
        self.block: threading.Event | None = None
        """Batches are answered when it is set."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        address, self._scheme = f"127.0.0.1:{port}", "https" if credentials else "http"
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self._server.start()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def Export(self, request: Any, context: Any) -> Any:
        """Take a batch."""
        with self._news:
            self.batches += 1
        if self.block is not None:
            self.block.wait(WAIT_S)
        found = [
            _span(span, resource)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._news:
            self._spans += found
            self._news.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once there are those that are waited for."""
        with self._news:
            assert self._news.wait_for(lambda: enough(self._spans), WAIT_S), self._spans
            return list(self._spans)

    def trace_of(self, request_id: str) -> "Trace":
        """The whole trace of a call that is over."""
        spans = self.wait(lambda spans: any(_is_root(span, request_id) for span in spans))
        root = next(span for span in spans if _is_root(span, request_id))
        # The root is ended last, and so it is sent last.
        return Trace(root, [span for span in spans if span.trace_id == root.trace_id])

    def close(self) -> None:
        """Go away."""
        self._server.stop(0).wait()


@dataclass(frozen=True)
class Trace:
    """The spans of one call."""

    root: Span
    spans: list[Span]

    def named(self, name: str) -> list[Span]:
        """Those of a name, in order of time."""
        return sorted([s for s in self.spans if s.name == name], key=lambda span: span.begun)

    def one(self, name: str) -> Span:
        """The only one of a name."""
        (span,) = self.named(name)
        return span

    def under(self, parent: Span) -> list[Span]:
        """Its children, in order of time."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: span.begun)


def _is_root(span: Span, request_id: str) -> bool:
    return span.attributes.get("deqlm.request_id") == request_id


def _span(span: trace_pb2.Span, resource: trace_pb2.ResourceSpans) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        begun=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        kind=span.kind,
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        resource=_values(resource.resource.attributes),
        state=span.trace_state,
    )


def _values(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
