"""When a failed call is tried again, and after how long; no waiting is done here."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final

import grpc

from client.errors import DeqlmError

ON_UNAVAILABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE})
"""For calls that change nothing: the server may have begun the lost one."""

ON_ABORTED: Final = frozenset({grpc.StatusCode.ABORTED})
"""For deleting a session whose last call is still being cancelled."""

NEVER: Final[frozenset[grpc.StatusCode]] = frozenset()
"""For calls that change a session: a lost answer may mean a changed session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter, for calls that are safe to repeat."""

    max_attempts: int = 4
    """Most attempts of one call, the first included."""
    initial_backoff_s: float = 0.1
    """Longest wait before the second attempt."""
    multiplier: float = 2.0
    """Growth of the wait from attempt to attempt."""
    max_backoff_s: float = 2.0
    """Longest wait."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if self.initial_backoff_s <= 0:
            raise ValueError(f"initial_backoff_s must be above 0, got {self.initial_backoff_s}")
        if self.multiplier < 1:
            raise ValueError(f"multiplier must be at least 1, got {self.multiplier}")
        if self.max_backoff_s < self.initial_backoff_s:
            raise ValueError(
                f"max_backoff_s must be at least initial_backoff_s = {self.initial_backoff_s}, "
                f"got {self.max_backoff_s}"
            )

    def backoff_s(self, attempt: int, *, jitter: float) -> float:
        """Wait after the given attempt (from 1); `jitter` in [0, 1) spreads it over its half."""
        longest = self.initial_backoff_s * self.multiplier ** (attempt - 1)
        return min(longest, self.max_backoff_s) * (0.5 + 0.5 * jitter)


class Attempts:
    """The attempts of one call: counts them and keeps its deadline."""

    def __init__(
        self, policy: RetryPolicy, *, retry_on: frozenset[grpc.StatusCode], timeout_s: float | None
    ) -> None:
        """Start the clock."""
        self._policy = policy
        self._retry_on = retry_on
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._made = 0

    def remaining_s(self) -> float | None:
        """Time left until the deadline; None without one."""
        return None if self._deadline_s is None else self._deadline_s - time.monotonic()

    def delay_s(self, error: DeqlmError) -> float | None:
        """Wait before the next attempt after this failure; None: give up.

        A server that says when to come back is obeyed. A wait past the deadline is not begun.
        """
        self._made += 1
        if error.code not in self._retry_on or self._made >= self._policy.max_attempts:
            return None
        delay_s = self._policy.backoff_s(self._made, jitter=random.random())
        delay_s = max(delay_s, error.retry_after_s or 0.0)
        remaining_s = self.remaining_s()
        return None if remaining_s is not None and delay_s >= remaining_s else delay_s
