"""Which sessions have their memory on the device, and which may leave it for others."""

from collections.abc import Sequence

from server.engine.requests import Lease
from server.engine.session import Session
from server.engine.session_base import SessionBase
from server.engine.snapshots import States


class SessionRoom(SessionBase):
    """The table's room on the device: ``max_resident`` slots, whichever sessions share them.

    Forks hold the slot of their origin, so that a fork needs no room; what goes on from it does.
    """

    @property
    def resident(self) -> int:
        """Sessions that hold a slot."""
        with self._lock:
            return len(self._resident)

    def holding(self) -> int:
        """Different slots that sessions hold."""
        with self._lock:
            return len(self._sharers)

    def has_room(self, lease: Lease) -> bool:
        """Whether the session of a lease may hold another slot in place of its own, if it has one.

        What other threads than the engine's do makes room, but for a fork under this lease.
        """
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return False
            is_alone = session.slot is not None and self._sharers[session.slot] == 1
            return len(self._sharers) - is_alone < self._max_resident

    def could_leave(self, lease: Lease) -> Sequence[Sequence[str]]:
        """Idle sessions by the slot that they share; if all of one leave there is more room.

        A slot whose other holder is the lease's session counts: that is about to leave it.

        Returns:
            Ids for each slot, the one that was not used for longest first; none where the lease is
            over, for which nobody has to leave.
        """
        with self._lock:
            own = self._holder(lease)
            if own is None:
                return []
            by_slot: dict[int, list[Session]] = {}
            for session in reversed(self._resident.values()):
                if session is not own and session.slot is not None:
                    by_slot.setdefault(session.slot, []).append(session)
            idle = [
                sharers
                for sharers in by_slot.values()
                if all(s.lease is None and not s.is_private for s in sharers)
            ]
            return [[s.session_id for s in sharers] for sharers in reversed(idle)]

    def idle(self, *, longer_than_s: float) -> Sequence[str]:
        """Resident sessions that no call uses, nor has used for that long; the oldest use first."""
        with self._lock:
            before = self._monotonic() - longer_than_s
            found = []
            for session in self._resident.values():
                if session.last_used > before:
                    break
                if session.lease is None:
                    found.append(session.session_id)
            return found

    def hold(self, session_id: str) -> int | None:
        """The slot of a session, retained for the caller; None where it has none."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.slot is None:
                return None
            self._slots.retain(session.slot)
            return session.slot

    def vacate(self, session_id: str, states: States | None = None) -> bool:
        """Takes an idle session off the device; False where a call has come for it meanwhile.

        ``states`` are what it goes on from where the store lacks it.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.lease is not None or session.slot is None:
                return False
            if states is None and not session.is_saved:
                return False
            self._vacate(session)
            session.states = states
            session.forget()
            return True
