"""The server's own metrics: read over HTTP, and what they say of calls and tokens."""

import asyncio
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from client.credentials import is_here
from loadtest.errors import LoadTestError
from loadtest.settings import tls_of, token_of
from loadtest.target import Connection

_TIMEOUT_S: Final = 10.0
_PORT: Final = 9464
_MOST_BYTES: Final = 16 * 2**20

COUNTERS: Final = (
    "deqlm_request_success_total",
    "deqlm_errors_total",
    "deqlm_scored_tokens_total",
    "deqlm_generation_tokens_total",
)
GAUGES: Final = {
    "deqlm_num_requests_running": "running",
    "deqlm_num_requests_waiting": "waiting",
    "deqlm_sessions": "sessions",
    "process_resident_memory_bytes": "memory_bytes",
}

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and labels, without the model."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one look at the metrics has found."""

    counters: Mapping[Key, float]
    gauges: Mapping[str, float]

    def since(self, before: "Page") -> dict[Key, float]:
        """How much each counter has grown."""
        return {key: value - before.counters.get(key, 0.0) for key, value in self.counters.items()}


def url_of(connection: Connection) -> str | None:
    """Where the metrics are; None where nobody is to look."""
    if connection.metrics == "none":
        return None
    if connection.metrics != "auto":
        return connection.metrics
    host = connection.address.rpartition(":")[0] or "127.0.0.1"
    return f"{'https' if tls_of(connection) else 'http'}://{host}:{_PORT}/metrics"


class MetricsPage:
    """The page with a server's metrics."""

    def __init__(self, connection: Connection, url: str) -> None:
        """Take where it is, and by what to show who asks."""
        self.url = url
        self._request = urllib.request.Request(url)
        token, host = token_of(connection), self._request.host or ""
        is_safe = url.startswith("https://") or connection.send_token_unencrypted or is_here(host)
        if token is not None and is_safe:
            self._request.add_unredirected_header("Authorization", f"Bearer {token}")
        self._context: ssl.SSLContext | None = None
        if url.startswith("https://"):
            self._context = ssl.create_default_context(cafile=connection.tls_ca)
            if connection.tls_cert is not None:
                self._context.load_cert_chain(connection.tls_cert, connection.tls_key, "")

    async def read(self) -> Page:
        """Look. Raises LoadTestError."""
        text = await asyncio.to_thread(self._text)
        try:
            return parse(text)
        except ValueError as error:
            raise LoadTestError(f"{self.url} is no page of metrics: {error}") from None

    def _text(self) -> str:
        try:
            with urllib.request.urlopen(
                self._request, timeout=_TIMEOUT_S, context=self._context
            ) as page:
                raw: bytes = page.read(_MOST_BYTES)
            return raw.decode("utf-8")
        except (OSError, HTTPException, UnicodeDecodeError) as error:
            reason = getattr(error, "reason", None) or error
            raise LoadTestError(
                f"the server's metrics cannot be read at {self.url}: {reason}; name their page "
                "with --metrics, or give --metrics none to compare nothing"
            ) from None


def parse(text: str) -> Page:
    """The samples that matter, summed over models. Raises ValueError."""
    counters: dict[Key, float] = {}
    gauges: dict[str, float] = {}
    for family in _families(text):
        for sample in family.samples:
            if sample.name in COUNTERS:
                labels = sorted((k, v) for k, v in sample.labels.items() if k != "model")
                key = (sample.name, tuple(labels))
                counters[key] = counters.get(key, 0.0) + sample.value
            elif sample.name in GAUGES:
                name = GAUGES[sample.name]
                gauges[name] = gauges.get(name, 0.0) + sample.value
    if "running" not in gauges:
        raise ValueError("it does not have deqlm_num_requests_running")
    return Page(counters, gauges)


def _families(text: str) -> list[Metric]:
    try:
        return list(text_string_to_metric_families(text))
    except Exception as error:  # of no kind in particular, and often without a word
        raise ValueError(f"it cannot be read ({type(error).__name__}) {error}".rstrip()) from None
