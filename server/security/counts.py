"""What a server counts of those that it turns away."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

_REASONS = (
    "missing",
    "malformed",
    "unknown_token",
    "expired_token",
    "expired_certificate",
    "unknown_certificate",
    "ambiguous_certificate",
    "missing_right",
)
_QUOTAS = ("requests", "tokens", "concurrent", "sessions", "session_bytes")


class SecurityCounts:
    """Metrics without the label ``model``: nobody has got as far as one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Count in a registry."""
        self._refused = Counter(
            "deqlm_auth_failures", "Callers turned away", ("reason",), registry=registry
        )

        self._quotas = Counter(
            "deqlm_quota_refusals", "Calls refused by a quota", ("quota",), registry=registry
        )
        self._reloads = Counter(
            "deqlm_reloads", "Files read anew", ("what", "outcome"), registry=registry
        )
        self._expiry = Gauge(
            "deqlm_certificate_expiry_timestamp_seconds",
            "Unix time at which the server's certificate ends, 0 without one",
            registry=registry,
        )
        # Of a count that begins at 1 an alert would miss the 1.
        for reason in _REASONS:
            self._refused.labels(reason)
        for quota in _QUOTAS:
            self._quotas.labels(quota)
        for what in ("certificates", "principals"):
            self._reloads.labels(what, "failed")

    def turned_away(self, reason: str) -> None:
        """A caller was not known, or had no right."""
        self._refused.labels(reason).inc()

    def quota_exceeded(self, quota: str) -> None:
        """A principal wanted more than it may use."""
        self._quotas.labels(quota).inc()

    def reloaded(self, what: str, *, is_done: bool) -> None:
        """Files were read anew, or could not be."""
        self._reloads.labels(what, "done" if is_done else "failed").inc()

    def watch_expiry(self, expiry: Callable[[], float]) -> None:
        """Tell from now on when the certificate in force ends."""
        self._expiry.set_function(expiry)
