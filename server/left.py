"""What the store has at the start: engines take it up, and what none has room for is left there."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.engine.engine import Engine
from server.engine.errors import SessionLimit
from server.engine.results import SessionView
from server.engine.snapshots import Snapshot
from server.store.base import Head
from server.store.blob import BlobError, Opened, read_head
from server.store.keeper import Keeper

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A session in the store, without its tokens.

    Attributes:
        opened: what is told of it.
        last_used: instant of the monotonic clock.
    """

    opened: Opened
    last_used: float

    @property
    def snapshot(self) -> Snapshot:
        """The session, of which tokens, states and answers are not there."""
        return self.opened.snapshot

    @property
    def idle_s(self) -> float:
        """Seconds since it was used last."""
        return time.monotonic() - self.last_used

    @property
    def is_expired(self) -> bool:
        """Whether its time to live has passed."""
        return self.idle_s > self.snapshot.ttl_s


@dataclass(slots=True)
class Left:
    """Sessions in the store that no engine has, and how engines come to have them.

    They are of models that are not served, or beyond a ``max_sessions`` that was made smaller.
    Whoever names one has it taken up if there is room, so that nobody else is given its id.
    """

    keeper: Keeper
    _engines: dict[str, Engine] = field(default_factory=dict)
    _sessions: dict[str, Stored] = field(default_factory=dict)

    def adopt(self, engine: Engine, heads: Sequence[Head]) -> int:
        """Has what the store has of an engine's sessions be its own, as far as there is room.

        Returns:
            How many sessions the store had for it.
        """
        self._engines[engine.name] = engine
        count = 0
        for head in heads:
            stored = _read(head)
            if stored is None or stored.snapshot.model != engine.name:
                continue
            try:
                view = self._add(engine, stored)
            except SessionLimit:
                # Somebody set a smaller bound: what does not fit waits in the store for room.
                _log.warning("a stored session is beyond max_sessions and is left in the store")
                continue
            count += view is not None
        return count

    def leave(self, heads: Sequence[Head]) -> int:
        """Has the store keep, until they expire, sessions that no engine has adopted.

        Returns:
            How many there are.
        """
        for head in heads:
            stored = _read(head)
            if stored is None or self._is_taken(stored):
                continue
            if stored.is_expired:
                self.keeper.drop(head.session_id)
                continue
            self._sessions[head.session_id] = stored
        return len(self._sessions)

    def take_back(self, session_id: str, owner: str) -> tuple[Engine, SessionView] | None:
        """Has a session that was left be its engine's, now that somebody wants it.

        Returns:
            Engine and session; None where no such session of this owner was left, it has expired,
            or its model is not served.

        Raises:
            SessionLimit: there is no room for it: it stays in the store.
        """
        stored = self._find(session_id, owner)
        if stored is None:
            return None
        engine = self._engines.get(stored.snapshot.model)
        if engine is None:
            return None
        view = self._add(engine, stored)
        del self._sessions[session_id]
        return None if view is None else (engine, view)

    def positions(self, model: str, owner: str) -> list[int]:
        """Tokens that each session has which was left of an owner."""
        return [
            stored.opened.position
            for stored in self._sessions.values()
            if (stored.snapshot.model, stored.snapshot.owner) == (model, owner)
        ]

    def forget(self, session_id: str, owner: str) -> bool:
        """Has a session be nobody's any more; False where none of this owner was left.

        It is for the caller to have it dropped.
        """
        if self._find(session_id, owner) is None:
            return False
        del self._sessions[session_id]
        return True

    def expire(self) -> None:
        """Drops those whose time to live has passed."""
        for session_id in [key for key, stored in self._sessions.items() if stored.is_expired]:
            del self._sessions[session_id]
            self.keeper.drop(session_id)

    def _find(self, session_id: str, owner: str) -> Stored | None:
        stored = self._sessions.get(session_id)
        return stored if stored is not None and stored.snapshot.owner == owner else None

    def _is_taken(self, stored: Stored) -> bool:
        engine = self._engines.get(stored.snapshot.model)
        return engine is not None and engine.sessions.is_current(stored.snapshot)

    def _add(self, engine: Engine, stored: Stored) -> SessionView | None:
        """Makes it an engine's; drops it where it has expired. Raises SessionLimit."""
        opened = stored.opened
        view = engine.sessions.add_away(
            opened.snapshot,
            position=opened.position,
            last_token=opened.last_token,
            idle_s=stored.idle_s,
        )
        if view is None:
            self.keeper.drop(opened.snapshot.session_id)
        return view


def _read(head: Head) -> Stored | None:
    try:
        opened = read_head(head.head)
    except BlobError as error:
        _log.error("session %s in the store is damaged: %s", head.session_id, error)
        return None
    # A clock that was set back must not make it live longer than its time to live.
    idle_s = max(0.0, time.time() - opened.snapshot.last_used_time)
    return Stored(opened, time.monotonic() - idle_s)
