"""Sends spans to a collector, and tells once when that fails, and once when it works again."""

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_TIMEOUT_S = 5.0
"""What the collector gets for one batch, repetitions included."""

_log = logging.getLogger(__name__)


class _Last(logging.Handler):
    """Keeps the last thing that the library has to say, which would say it again and again."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said = record.getMessage()


class Exporter(SpanExporter):
    """Sends batches of spans by OTLP over gRPC; lives on the thread of the batches."""

    def __init__(self, endpoint: str) -> None:
        """Connect when there is something to send.

        Args:
            endpoint: http://HOST:PORT, or https:// for TLS.
        """
        self._endpoint = endpoint
        self._inner = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._last = _Last(logging.WARNING)
        self._dropped, self._is_given_up = 0, False
        theirs = logging.getLogger("opentelemetry")
        theirs.addHandler(self._last)
        theirs.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; where that is not possible it is dropped."""
        if self._is_given_up:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._note_success()
        elif not self._is_given_up:
            self._note_failure(len(spans))
        return result

    def _note_success(self) -> None:
        if self._dropped:
            _log.warning(
                "spans are sent to %s again; %d or more were dropped", self._endpoint, self._dropped
            )
        self._dropped = 0

    def _note_failure(self, count: int) -> None:
        if not self._dropped:
            _log.warning(
                "spans cannot be sent to %s and are dropped until they can; calls go on: %s",
                self._endpoint,
                self._last.said,
            )
        self._dropped += count

    def give_up(self) -> None:
        """Send nothing more, and end what is being sent; on any thread."""
        self._is_given_up = True
        self._inner.shutdown()

    def shutdown(self) -> None:
        """Close the connection."""
        if not self._is_given_up:
            self._inner.shutdown()
        logging.getLogger("opentelemetry").removeHandler(self._last)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """There is nothing here that waits."""
        return True
