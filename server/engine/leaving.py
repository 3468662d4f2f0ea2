"""How sessions leave the device: as nobody uses them, or to make room for others."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from server.engine.requests import Lease
from server.engine.sessions import SessionTable
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.snapshots import Snapshot, StateFormat, States
from server.engine.solve import Solved
from server.engine.states import DTYPES

log = logging.getLogger(__name__)

_AGAIN_S = 10.0
"""After which a session that could not leave the device is asked to again."""


class Leaving:
    """Takes sessions off the device, and copies what they hold. On the engine's thread.

    Attributes:
        put_away: takes the snapshot of a session that leaves the device; it is kept from then on.
            None where sessions do not leave.
        left_idle: sessions that left the device as nobody used them.
        left_full: sessions that left it to make room.
    """

    def __init__(
        self, slab: Slab, slots: SlotPool, sessions: SessionTable, state_format: StateFormat
    ) -> None:
        """Takes the memory, its slots, and the sessions that hold most of them."""
        self._slab, self._slots, self._sessions = slab, slots, sessions
        self._format = state_format
        self.put_away: Callable[[Snapshot], None] | None = None
        self.left_idle = self.left_full = 0
        self._stuck: dict[str, float] = {}
        """Sessions that could not leave, and until when that is not tried again."""

    def capture(self, session_id: str) -> Snapshot | None:
        """All of a session as it is now; None where it is gone, private or away."""
        slot = self._sessions.hold(session_id)
        if slot is None:
            return self._sessions.snapshot(session_id)
        try:
            return self._sessions.snapshot(session_id, self._states(*self._slab.kept_states(slot)))
        finally:
            self._slots.release(slot)

    def leave_idle(self, longer_than_s: float) -> None:
        """Takes sessions off the device that no call has used for so long."""
        for session_id in self._sessions.idle(longer_than_s=longer_than_s):
            self.left_idle += self._put_away(session_id)

    def _make_room(self, lease: Lease) -> bool:
        """Has a lease's session hold a slot of its own, if need be in the place of idle ones."""
        if self._sessions.has_room(lease):
            return True
        for sharers in self._sessions.could_leave(lease):
            for session_id in sharers:
                self.left_full += self._put_away(session_id)
            if self._sessions.has_room(lease):
                return True
        return False

    def _put_away(self, session_id: str) -> bool:
        """Has a session leave the device; what breaks at that is no affair of others."""
        now = time.monotonic()
        if self.put_away is None or self._stuck.get(session_id, now) > now:
            return False
        try:
            if self._sessions.is_saved(session_id):
                return self._sessions.vacate(session_id)
            snapshot = self.capture(session_id)
            if snapshot is None:
                return False
            self.put_away(snapshot)
            return self._sessions.vacate(session_id, snapshot.states)
        except Exception:
            log.exception("session %s did not leave the device: once more later", session_id)
            self._stuck = {one: until for one, until in self._stuck.items() if until > now}
            self._stuck[session_id] = now + _AGAIN_S
            return False

    def _states(self, z_star: Tensor, solved: Solved) -> States:
        kept = z_star.to(DTYPES[self._format]).cpu().contiguous()
        data = kept.view(torch.uint8).numpy().tobytes()
        return States(self._format, len(z_star), z_star.shape[1], data, solved)
