"""The table of sessions: who owns which memory, and who may work on it now."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.errors import SessionBusy, SessionLimit, SessionNotFound
from server.engine.requests import Lease
from server.engine.results import SessionView, Totals
from server.engine.slots import SlotPool
from server.engine.solve import Solve


@dataclass(slots=True)
class _Session:
    session_id: str
    owner: str
    ttl_s: float
    solve: Solve
    create_time: float
    last_used_time: float
    last_used: float
    slot: int | None = None
    position: int = 0
    totals: Totals = field(default_factory=Totals)
    lease: int | None = None
    last_token: int | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """What a job continues from.

    Attributes:
        slot: of the memory, retained for the caller, who releases it; None for a fresh session.
        position: tokens held.
        totals: over them.
    """

    slot: int | None
    position: int
    totals: Totals


class SessionTable:
    """Sessions by id. Thread-safe; never touches the device.

    A session's slot is never written while the session holds it: a call works in a slot of its own
    and ``commit`` exchanges the two. So a call that fails leaves no trace, and a fork is free.
    """

    def __init__(
        self,
        slots: SlotPool,
        *,
        max_sessions: int,
        session_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Makes an empty table over ``slots``; ``session_bytes`` is what one slot takes."""
        self._slots = slots
        self._max_sessions = max_sessions
        self._session_bytes = session_bytes
        self._monotonic, self._wall = monotonic, wall
        self._sessions: dict[str, _Session] = {}
        self._serial = 0
        self._lock = threading.RLock()

    def create(self, *, owner: str, ttl_s: float, solve: Solve) -> SessionView:
        """A new session without memory.

        Raises:
            SessionLimit: there are ``max_sessions`` already.
        """
        with self._lock:
            return self._view(self._add(owner=owner, ttl_s=ttl_s, solve=solve))

    def _add(self, *, owner: str, ttl_s: float, solve: Solve) -> _Session:
        self.expire()
        if len(self._sessions) >= self._max_sessions:
            raise SessionLimit(
                f"sessions must be at most {self._max_sessions}, and that many exist; "
                "delete one or wait until one expires"
            )
        now = self._wall()
        session = _Session(
            session_id=secrets.token_hex(16),
            owner=owner,
            ttl_s=ttl_s,
            solve=solve,
            create_time=now,
            last_used_time=now,
            last_used=self._monotonic(),
        )
        self._sessions[session.session_id] = session
        return session

    def get(self, session_id: str, owner: str) -> SessionView:
        """The session, if it is the owner's; otherwise ``SessionNotFound``."""
        with self._lock:
            return self._view(self._find(session_id, owner))

    def list(self, owner: str) -> list[SessionView]:
        """The owner's sessions, oldest first."""
        with self._lock:
            self.expire()
            return [self._view(s) for s in self._sessions.values() if s.owner == owner]

    def fork(self, session_id: str, owner: str, *, ttl_s: float | None = None) -> SessionView:
        """A copy that shares the memory until one of the two goes on.

        Raises:
            SessionNotFound: no such session of this owner.
            SessionBusy: a call is running on it.
            SessionLimit: the table is full.
        """
        with self._lock:
            origin = self._find(session_id, owner)
            if origin.lease is not None:
                raise SessionBusy(session_id)
            ttl_s = origin.ttl_s if ttl_s is None else ttl_s
            session = self._add(owner=owner, ttl_s=ttl_s, solve=origin.solve)
            if origin.slot is not None:
                self._slots.retain(origin.slot)
            session.slot = origin.slot
            session.position, session.totals = origin.position, origin.totals
            session.last_token = origin.last_token
            return self._view(session)

    def delete(self, session_id: str, owner: str) -> None:
        """Forgets a session.

        Raises:
            SessionNotFound: no such session of this owner.
            SessionBusy: a call is running on it.
        """
        with self._lock:
            session = self._find(session_id, owner)
            if session.lease is not None:
                raise SessionBusy(session_id)
            self._remove(session)

    def acquire(self, session_id: str, owner: str) -> Lease:
        """The right to work on a session, for one call at a time.

        Raises:
            SessionNotFound: no such session of this owner.
            SessionBusy: another call has it.
        """
        with self._lock:
            session = self._find(session_id, owner)
            if session.lease is not None:
                raise SessionBusy(session_id)
            self._serial += 1
            session.lease = self._serial
            self._touch(session)
            return Lease(session_id, self._serial)

    def release(self, lease: Lease) -> None:
        """Gives the right back; giving it back twice does nothing."""
        with self._lock:
            session = self._holder(lease)
            if session is not None:
                session.lease = None
                self._touch(session)

    def base(self, lease: Lease) -> Base | None:
        """The memory that a job of this lease continues; None when the lease is over."""
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return None
            if session.slot is not None:
                self._slots.retain(session.slot)
            return Base(session.slot, session.position, session.totals)

    def commit(
        self, lease: Lease, *, slot: int, position: int, totals: Totals, last_token: int
    ) -> SessionView | None:
        """Makes ``slot`` the session's memory and takes over the caller's hold on it.

        Returns:
            The session, or None when the lease is over: then the slot is still the caller's.
        """
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return None
            if session.slot is not None:
                self._slots.release(session.slot)
            session.slot, session.position, session.totals = slot, position, totals
            session.last_token = last_token
            self._touch(session)
            return self._view(session)

    def view(self, lease: Lease) -> SessionView | None:
        """The session of a lease, or None when the lease is over."""
        with self._lock:
            session = self._holder(lease)
            return None if session is None else self._view(session)

    def expire(self) -> int:
        """Forgets idle sessions past their time to live; how many."""
        with self._lock:
            now = self._monotonic()
            old = [
                s
                for s in self._sessions.values()
                if s.lease is None and now - s.last_used > s.ttl_s
            ]
            for session in old:
                self._remove(session)
            return len(old)

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    def holding(self) -> int:
        """Different slots that sessions hold."""
        with self._lock:
            return len({s.slot for s in self._sessions.values() if s.slot is not None})

    def _find(self, session_id: str, owner: str) -> _Session:
        self.expire()
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise SessionNotFound(session_id)
        return session

    def _holder(self, lease: Lease) -> _Session | None:
        session = self._sessions.get(lease.session_id)
        return session if session is not None and session.lease == lease.serial else None

    def _touch(self, session: _Session) -> None:
        session.last_used, session.last_used_time = self._monotonic(), self._wall()

    def _remove(self, session: _Session) -> None:
        del self._sessions[session.session_id]
        if session.slot is not None:
            self._slots.release(session.slot)

    def _view(self, session: _Session) -> SessionView:
        return SessionView(
            session_id=session.session_id,
            owner=session.owner,
            position=session.position,
            totals=session.totals,
            create_time=session.create_time,
            last_used_time=session.last_used_time,
            expire_time=session.last_used_time + session.ttl_s,
            ttl_s=session.ttl_s,
            memory_bytes=self._session_bytes if session.slot is not None else 0,
            busy=session.lease is not None,
            solve=session.solve,
            last_token=session.last_token,
        )
