"""The server's own metrics, and what they say of calls and tokens."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from client._addresses import is_here
from client.commands._environment import UsageError
from client.metrics_page import (
    Labels,
    Page,
    PageError,
    Place,
    fetch,
    read_place,
    tls_context,
)
from loadtest.errors import LoadTestError
from loadtest.settings import tls_of, token_of
from loadtest.target import Connection

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

Key = tuple[str, Labels]
"""A metric's name and labels, without the model."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the metrics has found, summed over models."""

    counters: Mapping[Key, float]
    gauges: Mapping[str, float]

    def since(self, before: "Look") -> dict[Key, float]:
        """How much each counter has grown."""
        return {key: value - before.counters.get(key, 0.0) for key, value in self.counters.items()}


def place_of(connection: Connection) -> Place | None:
    """Where the metrics are; None where nobody is to look.

    Raises:
        UsageError: the server's address has no host that tells it.
    """
    if connection.metrics == "none":
        return None
    if connection.metrics != "auto":
        return read_place(connection.metrics)
    host = connection.address.rpartition(":")[0] or "127.0.0.1"
    try:
        return read_place(host, is_encrypted=tls_of(connection) is not None)
    except ValueError:
        raise UsageError(
            f"metrics must be named, or none, as {connection.address} does not tell where they are"
        ) from None


class Metrics:
    """A server's metrics, looked at again and again."""

    def __init__(self, connection: Connection, place: Place) -> None:
        """Take where they are, and by what to show who asks.

        Raises:
            UsageError: a certificate or the token cannot be read.
        """
        self._place = place
        token, here = token_of(connection), is_here(f"{place.host}:{place.port}")
        is_safe = place.is_encrypted or connection.send_token_unencrypted or here
        self._token = token if is_safe else None
        self._context: ssl.SSLContext | None = None
        if place.is_encrypted:
            files = connection.tls_ca, connection.tls_cert, connection.tls_key
            try:
                self._context = tls_context(*files)
            except ValueError as error:
                raise UsageError(f"metrics: {error}") from None

    async def look(self) -> Look:
        """Look. Raises LoadTestError."""
        try:
            page = await asyncio.to_thread(
                fetch, self._place, token=self._token, context=self._context
            )
        except PageError as error:
            raise LoadTestError(
                f"the server's metrics cannot be read: {error}; --metrics none compares nothing"
            ) from None
        return look(page)


def look(page: Page) -> Look:
    """The samples of a page that matter."""
    counters: dict[Key, float] = defaultdict(float)
    for name in COUNTERS:
        for labels, value in page.series(name).items():
            key = (name, tuple(pair for pair in labels if pair[0] != "model"))
            counters[key] += value
    gauges = {short: sum(page.series(name).values()) for name, short in GAUGES.items()}
    return Look(dict(counters), gauges)
