"""One session, as the table of sessions has it."""

from dataclasses import dataclass, field

from server.engine.results import SessionView, Totals
from server.engine.snapshots import Answer, Snapshot, States
from server.engine.solve import Solve


@dataclass(slots=True, kw_only=True)
class Session:
    """A session. It is *resident* while it has a slot, and *away* while its tokens are not here.

    Attributes:
        session_id, owner, ttl_s, solve, create_time, last_used_time, totals, revision, answers,
            repairs: as in a ``Snapshot``.
        last_used: the same instant of the monotonic clock.
        is_private: of a stream without a session: nobody else sees it, and it is never stored.
        slot: of the device's memory.
        position: tokens held.
        last_token: the last of them.
        tokens: ids; None while the session is away.
        states: of the last tokens, of a session that is neither resident nor away; None where they
            have to be solved again.
        saved: last revision that is in the store.
        lease: of the call that works on it.
    """

    session_id: str
    owner: str
    ttl_s: float
    solve: Solve
    create_time: float
    last_used_time: float
    last_used: float
    is_private: bool = False
    slot: int | None = None
    position: int = 0
    totals: Totals = field(default_factory=Totals)
    last_token: int | None = None
    tokens: bytes | None = b""
    states: States | None = None
    answers: tuple[Answer, ...] = ()
    revision: int = 1
    saved: int = 0
    lease: int | None = None
    repairs: int = 0

    @property
    def is_away(self) -> bool:
        """Whether its tokens have to be fetched before it can be used."""
        return self.tokens is None

    @property
    def is_saved(self) -> bool:
        """Whether the store has it as it is."""
        return self.saved >= self.revision

    def forget(self) -> None:
        """Leaves to the store what the store has, unless a call or the device needs it."""
        is_idle = self.slot is None and self.lease is None
        # One that is empty takes no room here, and needs no store to begin.
        is_empty = self.tokens == b"" and not self.answers
        if is_idle and self.is_saved and not (self.is_private or is_empty):
            self.tokens, self.states, self.answers = None, None, ()

    def snapshot(self, *, model: str, fingerprint: str, states: States | None) -> Snapshot:
        """All of it, which must not be away."""
        assert self.tokens is not None, "a session that is away cannot tell its tokens"
        return Snapshot(
            session_id=self.session_id,
            model=model,
            fingerprint=fingerprint,
            owner=self.owner,
            ttl_s=self.ttl_s,
            solve=self.solve,
            create_time=self.create_time,
            last_used_time=self.last_used_time,
            revision=self.revision,
            totals=self.totals,
            tokens=self.tokens,
            states=states,
            answers=self.answers,
            repairs=self.repairs,
        )

    def view(self, *, memory_bytes: int, snapshot: Snapshot | None = None) -> SessionView:
        """The session as its owner may see it."""
        return SessionView(
            session_id=self.session_id,
            owner=self.owner,
            position=self.position,
            totals=self.totals,
            create_time=self.create_time,
            last_used_time=self.last_used_time,
            expire_time=self.last_used_time + self.ttl_s,
            ttl_s=self.ttl_s,
            memory_bytes=memory_bytes if self.slot is not None else 0,
            busy=self.lease is not None,
            solve=self.solve,
            last_token=self.last_token,
            repairs=self.repairs,
            snapshot=snapshot,
        )
