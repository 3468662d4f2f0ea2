"""What a server counts of those that it turns away."""

from prometheus_client import CollectorRegistry, Counter


class SecurityCounts:
    """Metrics without the label ``model``: nobody has got as far as one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Count in a registry."""
        self._refused = Counter(
            "deqlm_auth_failures", "Callers turned away", ("reason",), registry=registry
        )

    def turned_away(self, reason: str) -> None:
        """A caller was not known, or had no right."""
        self._refused.labels(reason).inc()
