"""How much a principal has used: calls and tokens by time, and what it holds at once.

No gRPC and no clock of its own: whoever makes it says what time it is. For one thread.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from server.security.errors import QuotaExceeded
from server.security.principals import Principal, Quotas

_MINUTE_S: Final = 60.0
_SOON_S: Final = 0.5
"""When to try again where something must end first, and nobody knows when it will."""
_LATER_S: Final = 10.0


@dataclass(slots=True)
class Charge:
    """What a piece of work is charged; what was taken for it beyond that is given back.

    Attributes:
        used: tokens.
    """

    used: int


class Bucket:
    """Holds what may be taken: filled evenly, full after a minute, and it may be in debt."""

    def __init__(self, per_minute: int, now: float) -> None:
        """Begin full.

        Args:
            per_minute: what comes in a minute, and what it holds.
            now: seconds.
        """
        self._holds = float(per_minute)
        self._level = self._holds
        self._filled = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken, 0 for now; more than it holds needs a full one."""
        self._fill(now)
        short = min(max(amount, 1.0), self._holds) - self._level
        return max(short, 0.0) * _MINUTE_S / self._holds

    def take(self, amount: float, now: float) -> None:
        """Take it, be it there or not."""
        self._fill(now)
        self._level = min(self._level - amount, self._holds)

    def resize(self, per_minute: int, now: float) -> None:
        """Hold another amount from now on; what has been taken stays taken, debts stay debts."""
        self._fill(now)
        taken = self._holds - self._level
        self._holds = float(per_minute)
        self._level = self._holds - taken

    def _fill(self, now: float) -> None:
        more = (now - self._filled) * self._holds / _MINUTE_S
        self._level = min(self._level + more, self._holds)
        self._filled = now


class Meter:
    """What one principal uses."""

    def __init__(self, name: str, quotas: Quotas, clock: Callable[[], float]) -> None:
        """Begin with nothing used.

        Args:
            name: of the principal, for messages.
            quotas: what it may.
            clock: seconds, never going back.
        """
        self._name, self._clock = name, clock
        self._running = 0
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.set(quotas)

    def set(self, quotas: Quotas) -> None:
        """Let other quotas hold from now on; what has been used stays used, what runs goes on."""
        now = self._clock()
        self.quotas = quotas
        self._requests = _resized(self._requests, quotas.requests_per_minute, now)
        self._tokens = _resized(self._tokens, quotas.tokens_per_minute, now)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A call, from its beginning to its end. Raises QuotaExceeded."""
        most = self.quotas.max_concurrent
        if most is not None and self._running >= most:
            raise self._exceeded("concurrent", f"at most {most} calls at once", _SOON_S)
        if self._requests is not None:
            now = self._clock()
            wait_s = self._requests.wait_s(1, now)
            if wait_s > 0:
                bound = f"{self.quotas.requests_per_minute} calls per minute"
                raise self._exceeded("requests", bound, wait_s)
            self._requests.take(1, now)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    @property
    def calls(self) -> int:
        """Those that run."""
        return self._running

    def take_tokens(self, count: int) -> None:
        """Use tokens that are about to be solved, or may be drawn. Raises QuotaExceeded."""
        if self._tokens is None:
            return
        now = self._clock()
        wait_s = self._tokens.wait_s(count, now)
        if wait_s > 0:
            bound = (
                f"{self.quotas.tokens_per_minute} tokens per minute, of which this takes {count}"
            )
            raise self._exceeded("tokens", bound, wait_s)
        self._tokens.take(count, now)

    def give_back(self, count: int) -> None:
        """Have tokens again that were taken and not used."""
        if self._tokens is not None:
            self._tokens.take(-count, self._clock())

    def check_session(self, *, held: int, held_bytes: int, more_bytes: int) -> None:
        """Whether there may be one more session. Raises QuotaExceeded.

        Args:
            held: sessions there are.
            held_bytes: that they may take.
            more_bytes: that the new one may take.
        """
        most, most_bytes = self.quotas.max_sessions, self.quotas.max_session_bytes
        if most is not None and held >= most:
            bound = f"at most {most} sessions; delete one or wait until one expires"
            raise self._exceeded("sessions", bound, _LATER_S)
        if most_bytes is not None and held_bytes + more_bytes > most_bytes:
            bound = (
                f"at most {most_bytes} bytes of sessions, of which {held_bytes} are in use and a "
                f"new one may take {more_bytes}; delete one or wait until one expires"
            )
            raise self._exceeded("session_bytes", bound, _LATER_S)

    def _exceeded(self, quota: str, bound: str, retry_after_s: float) -> QuotaExceeded:
        return QuotaExceeded(
            f"{self._name!r} may use {bound}", quota=quota, retry_after_s=retry_after_s
        )


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket


class Meters:
    """The meters of all principals that have quotas."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            clock: seconds, never going back.
        """
        self._clock = clock
        self._meters: dict[str, Meter] = {}

    @property
    def running(self) -> int:
        """Calls of all principals."""
        return sum(meter.calls for meter in self._meters.values())

    def of(self, principal: Principal) -> Meter | None:
        """A principal's; None if it may use as much as there is."""
        meter = self._meters.get(principal.name)
        if meter is None and principal.quotas == Quotas():
            return None
        if meter is None:
            meter = Meter(principal.name, principal.quotas, self._clock)
            self._meters[principal.name] = meter
        elif meter.quotas != principal.quotas:
            meter.set(principal.quotas)
        return meter
