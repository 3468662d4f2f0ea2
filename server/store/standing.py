"""How a session store does: whether it fails or is slow, and when it is tried again."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
"""Before the store is tried again."""


class StoreObserver(Protocol):
    """Told what the store does; called on the keeper's thread."""

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        """A ``read`` or ``write`` took so long."""


class Unwatched:
    """Looks away."""

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        """Ignores it."""


class Standing:
    """Follows what a store does. One thread tells it; others may ask ``is_up``."""

    def __init__(
        self,
        label: str,
        *,
        timeout_s: float,
        observer: StoreObserver | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with a store that is up.

        Args:
            label: of the store, for the log.
            timeout_s: a store that has been busy with one thing for so long counts as down.
            observer: told what the store does.
            monotonic: clock.
        """
        self._label, self._timeout_s = label, timeout_s
        self._observer = observer or Unwatched()
        self._monotonic = monotonic
        self._is_failing = False
        self._busy_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    @property
    def is_up(self) -> bool:
        """Whether the store does what it is asked, in time."""
        busy_since = self._busy_since
        is_slow = busy_since is not None and self._monotonic() - busy_since > self._timeout_s
        return not (self._is_failing or is_slow)

    @property
    def patience_s(self) -> float | None:
        """After how long a store of which nobody wants anything is asked; None for never.

        One that failed to read is found to be back by nothing else.
        """
        return _LONGEST_PAUSE_S if self._is_failing else None

    def next_pause_s(self) -> float:
        """How long to wait before the next write: twice as long each time."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return pause_s

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Surrounds a ``read`` or ``write`` of the store."""
        begun = self._busy_since = self._monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            self._busy_since = None
            self._observer.store_called(operation, self._monotonic() - begun, failed=failed)

    def note_failure(self, error: Exception) -> None:
        """The store did not do what it was asked."""
        if not self._is_failing:
            _log.error("session store fails, sessions are held in memory meanwhile: %s", error)
        self._is_failing = True

    def note_success(self) -> None:
        """The store did what it was asked."""
        if self._is_failing:
            _log.warning("session store %s is back", self._label)
        self._is_failing, self._pause_s = False, _FIRST_PAUSE_S
