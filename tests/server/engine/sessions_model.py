"""What the table of sessions must be like, as a dictionary: for ``test_sessions_machine.py``."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from server.engine.errors import SessionBusy, SessionNotFound
from server.engine.requests import Lease
from server.engine.results import SessionView, Totals
from server.engine.session_work import Base
from server.engine.sessions import SessionTable
from server.engine.slots import SlotPool
from server.engine.snapshots import Snapshot, States
from server.engine.solve import Solve, Solved

MAX_SESSIONS, MAX_RESIDENT, SLOTS = 4, 2, 6
OWNERS = st.sampled_from(("ann", "bob"))
TTLS = st.sampled_from((5.0, 1e6, 1e9))


@dataclass
class Expected:
    """A session as the model knows it; ``last_used`` is of the monotonic clock."""

    owner: str
    ttl_s: float
    last_used: float
    created: float
    used: float
    slot: int | None = None
    position: int = 0
    lease: Lease | None = None
    tokens: bytes = b""
    revision: int = 1
    saved: int = 0
    away: bool = False

    def forget(self) -> None:
        """The store has it, and nobody needs it here."""
        if self.slot is None and self.lease is None and self.saved == self.revision:
            self.away = bool(self.tokens)


STATES = States(
    format="float32",
    rows=1,
    d_model=1,
    data=bytes(4),
    solved=Solved(nfe=1, residual=0.0, status="converged"),
)


def snapshot_of(session_id: str, session: Expected) -> Snapshot:
    """What a store has of it."""
    return Snapshot(
        session_id=session_id,
        model="",
        fingerprint="",
        owner=session.owner,
        ttl_s=session.ttl_s,
        solve=Solve(),
        create_time=session.created,
        last_used_time=session.used,
        revision=session.revision,
        totals=Totals(),
        tokens=session.tokens,
        states=STATES,
    )


class SessionsModel(RuleBasedStateMachine):
    """A table of sessions, and what must be true of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(SLOTS)
        self.now, self.wall = 1000.0, 5000.0
        self.table = SessionTable(
            self.pool,
            max_sessions=MAX_SESSIONS,
            max_resident=MAX_RESIDENT,
            session_bytes=100,
            monotonic=lambda: self.now,
            wall=lambda: self.wall,
        )
        self.live: dict[str, Expected] = {}
        self.gone: list[str] = []
        self.over: list[Lease] = []
        self.bases: list[Base] = []
        self.on_their_way: list[Snapshot] = []  # to the store, also of those that are gone

    # What the model says

    def expire(self) -> None:
        for session_id, session in list(self.live.items()):
            if session.lease is None and self.now - session.last_used > session.ttl_s:
                self.drop(session_id)

    def drop(self, session_id: str) -> None:
        del self.live[session_id]
        self.gone.append(session_id)

    def touch(self, session: Expected) -> None:
        session.last_used, session.used = self.now, max(self.wall, session.created)

    def error(self, session_id: str, owner: str, *, may_be_busy: bool) -> type[Exception] | None:
        """What a call on a session must raise."""
        self.expire()
        session = self.live.get(session_id)
        if session is None or session.owner != owner:
            return SessionNotFound
        return SessionBusy if session.lease and not may_be_busy else None

    def has_room(self, lease: Lease) -> bool:
        """Whether what a lease's session comes to may have a slot of its own."""
        own = self.holder(lease)
        held = {s.slot for s in self.live.values() if s is not own and s.slot is not None}
        return own is not None and len(held) < MAX_RESIDENT

    def check_view(self, view: SessionView, session: Expected) -> None:
        assert (view.owner, view.position, view.ttl_s, view.busy) == (
            session.owner,
            session.position,
            session.ttl_s,
            session.lease is not None,
        )
        assert (view.create_time, view.last_used_time) == (session.created, session.used)
        assert view.expire_time == session.used + session.ttl_s
        assert view.memory_bytes == (100 if session.slot is not None else 0)

    def any_id(self, data: st.DataObject) -> tuple[str, str]:
        """A session and who asks for it: mostly one that is there, and its owner."""
        owned = [(session_id, session.owner) for session_id, session in self.live.items()]
        other = st.tuples(st.sampled_from([*self.live, *self.gone, "made up"]), OWNERS)
        if not owned:
            return data.draw(other)
        right = st.sampled_from(owned)
        return data.draw(st.one_of(right, right, right, other))

    def any_lease(self, data: st.DataObject) -> Lease | None:
        """A lease that holds, or one that is over."""
        held = [s.lease for s in self.live.values() if s.lease]
        leases = held + self.over
        return data.draw(st.sampled_from(leases)) if leases else None

    def holder(self, lease: Lease) -> Expected | None:
        session = self.live.get(lease.session_id)
        return session if session and session.lease == lease else None
