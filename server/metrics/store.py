"""What is counted of the session store."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.metrics.buckets import Bounds
from server.store.keeper import Keeper


class StoreMetrics(Collector):
    """Told of each read and write, and asks the keeper of the store when somebody looks.

    Without the label ``model``: models share the store.
    """

    def __init__(self, registry: CollectorRegistry, bounds: Bounds) -> None:
        """Count in a registry."""
        self.keeper: Keeper | None = None
        registry.register(self)
        self._seconds = Histogram(
            "deqlm_store_seconds",
            "One read or write of the session store",
            ("operation",),
            buckets=bounds,
            registry=registry,
        )
        self._errors = Counter(
            "deqlm_store_errors",
            "Reads and writes of the session store that failed",
            ("operation",),
            registry=registry,
        )

        for operation in ("read", "write"):
            self._seconds.labels(operation)
            self._errors.labels(operation)

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        """The session store was read or written; called on its thread."""
        self._seconds.labels(operation).observe(seconds)
        if failed:
            self._errors.labels(operation).inc()

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        keeper = self.keeper
        sessions, size = (0, 0) if keeper is None else keeper.stored
        waiting = 0 if keeper is None else keeper.waiting
        is_up = keeper is not None and keeper.is_up
        for name, text, value in (
            ("deqlm_store_up", "Whether the session store answers, 0 or 1", is_up),
            ("deqlm_store_sessions", "Sessions in the session store", sessions),
            ("deqlm_store_bytes", "Bytes of sessions in the session store", size),
            ("deqlm_store_waiting", "Sessions the store has yet to take", waiting),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
