"""What every part of the table of sessions stands on: the sessions, the lock, who is resident."""

import math
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from server.engine.errors import SessionLimit, SessionNotFound
from server.engine.requests import Lease
from server.engine.results import SessionView
from server.engine.session import Session
from server.engine.slots import SlotPool
from server.engine.snapshots import TOKEN_BYTES, Snapshot, States
from server.engine.solve import Solve


class SessionBase:
    """Sessions by id, and which of them hold a slot. Thread-safe; never touches the device."""

    def __init__(
        self,
        slots: SlotPool,
        *,
        max_sessions: int,
        session_bytes: int,
        max_resident: int | None = None,
        model: str = "",
        fingerprint: str = "",
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Makes an empty table.

        Args:
            slots: of the device's memory.
            max_sessions: most sessions.
            session_bytes: what one slot takes.
            max_resident: most different slots that sessions hold; None for one each.
            model: name of the model, for snapshots.
            fingerprint: of its checkpoint, for snapshots.
            monotonic: clock that times to live are measured by.
            wall: clock that tells the time of day.
        """
        self._slots = slots
        self._max_sessions = max_sessions
        self._max_resident = max_sessions if max_resident is None else max_resident
        self._session_bytes = session_bytes
        self._model, self._fingerprint = model, fingerprint
        self._monotonic, self._wall = monotonic, wall
        self._sessions: dict[str, Session] = {}
        self._resident: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._sharers: Counter[int] = Counter()  # sessions by the slot that they hold
        self._next_expiry = math.inf
        """No session expires before."""
        self._serial = 0
        self._lock = threading.RLock()
        self.on_expired: Callable[[str], None] = lambda session_id: None
        """Told the id of each session that expired, with the table locked."""

    def _add(self, *, owner: str, ttl_s: float, solve: Solve, session_id: str | None) -> Session:
        self._check_room()
        now = self._wall()
        session = Session(
            session_id=session_id or secrets.token_hex(16),
            owner=owner,
            ttl_s=ttl_s,
            solve=solve,
            create_time=now,
            last_used_time=now,
            last_used=self._monotonic(),
        )
        self._insert(session)
        return session

    def _check_room(self) -> None:
        self.expire()
        if len(self._sessions) >= self._max_sessions:
            raise SessionLimit(
                f"sessions must be at most {self._max_sessions}, and that many exist; "
                "delete one or wait until one expires"
            )

    def _insert(self, session: Session) -> None:
        assert session.session_id not in self._sessions, "ids are not given twice"
        self._sessions[session.session_id] = session
        self._next_expiry = min(self._next_expiry, session.last_used + session.ttl_s)

    def expire(self) -> int:
        """Forgets idle sessions past their time to live; how many."""
        with self._lock:
            now = self._monotonic()
            if now <= self._next_expiry:
                return 0
            old = [
                s
                for s in self._sessions.values()
                if s.lease is None and now - s.last_used > s.ttl_s
            ]
            for session in old:
                self._remove(session)
                self.on_expired(session.session_id)
            # A session under a call is looked at when the call has ended.
            self._next_expiry = min(
                (s.last_used + s.ttl_s for s in self._sessions.values()), default=math.inf
            )
            return len(old)

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    @contextmanager
    def at_rest(self) -> Iterator[Counter[int]]:
        """Nothing changes meanwhile; how many sessions hold each slot."""
        with self._lock:
            held = (s.slot for s in self._sessions.values() if s.slot is not None)
            yield Counter(held)

    def leased(self) -> set[int]:
        """Serial numbers of the leases that hold."""
        with self._lock:
            return {s.lease for s in self._sessions.values() if s.lease is not None}

    def private(self) -> int:
        """Sessions that are streams' own."""
        with self._lock:
            return sum(s.is_private for s in self._sessions.values())

    def problems(self) -> Sequence[str]:
        """Where the table contradicts itself."""
        with self._lock:
            sessions, found = self._sessions, []
            seated = {i for i, s in sessions.items() if s.slot is not None}
            if seated != set(self._resident):
                found.append(f"sessions {sorted(seated ^ set(self._resident))} are half resident")
            if len(sessions) > self._max_sessions:
                found.append(f"{len(sessions)} sessions, of {self._max_sessions} at most")
            if self._sharers != Counter(s.slot for s in self._resident.values()):
                found.append("slots are not counted as sessions hold them")
            if len(self._sharers) > self._max_resident:
                found.append(
                    f"sessions hold {len(self._sharers)} slots, of {self._max_resident} at most"
                )
            leases = [s.lease for s in sessions.values() if s.lease is not None]
            if len(set(leases)) < len(leases) or max(leases, default=0) > self._serial:
                found.append(f"leases {sorted(leases)} were not given one after the other")
            for session in sessions.values():
                found += _session_problems(session)
                ends = session.last_used + session.ttl_s
                if session.lease is None and ends < self._next_expiry:
                    found.append(f"session {session.session_id} would not expire in time")
            return found

    def _find(self, session_id: str, owner: str) -> Session:
        self.expire()
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise SessionNotFound(session_id)
        return session

    def _holder(self, lease: Lease) -> Session | None:
        session = self._sessions.get(lease.session_id)
        return session if session is not None and session.lease == lease.serial else None

    def _touch(self, session: Session) -> None:
        # The time of day may be set back; nothing is used before it is made.
        wall = max(self._wall(), session.create_time)
        session.last_used, session.last_used_time = self._monotonic(), wall
        self._next_expiry = min(self._next_expiry, session.last_used + session.ttl_s)
        if session.slot is not None:
            self._resident.move_to_end(session.session_id)

    def _seat(self, session: Session, slot: int) -> None:
        session.slot = slot
        self._sharers[slot] += 1
        self._resident[session.session_id] = session

    def _vacate(self, session: Session) -> None:
        if session.slot is not None:
            del self._resident[session.session_id]
            self._sharers[session.slot] -= 1
            if self._sharers[session.slot] == 0:
                del self._sharers[session.slot]
            self._slots.release(session.slot)
            session.slot = None

    def _remove(self, session: Session) -> None:
        del self._sessions[session.session_id]
        self._vacate(session)

    def _snapshot(self, session: Session, states: States | None) -> Snapshot:
        return session.snapshot(model=self._model, fingerprint=self._fingerprint, states=states)

    def _view(self, session: Session, snapshot: Snapshot | None = None) -> SessionView:
        return session.view(memory_bytes=self._session_bytes, snapshot=snapshot)


def _session_problems(session: Session) -> Sequence[str]:
    found = []
    if session.tokens is not None and len(session.tokens) != TOKEN_BYTES * session.position:
        found.append(f"session {session.session_id} has other tokens than its position tells")
    if session.slot is not None and session.is_away:
        found.append(f"session {session.session_id} is resident and away")
    if session.saved > session.revision:
        found.append(f"session {session.session_id} is stored as it has never been")
    return found
