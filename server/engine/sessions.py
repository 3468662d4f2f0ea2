"""The table of sessions: who owns which memory, and who may work on it now."""

import math
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from server.engine.errors import SessionBusy, SessionLimit, SessionNotFound
from server.engine.requests import Lease
from server.engine.results import SessionView, Totals
from server.engine.session import Session
from server.engine.slots import SlotPool
from server.engine.snapshots import TOKEN_BYTES, Answer, Snapshot, States
from server.engine.solve import Solve


@dataclass(frozen=True, slots=True)
class Base:
    """What a job continues from.

    Attributes:
        slot: of the memory, retained for the caller, who releases it; None where there is none.
        position: tokens held.
        totals: over them.
        tokens: ids, where the memory has to be made again from them.
        states: of the last tokens, which spare solving.
    """

    slot: int | None
    position: int
    totals: Totals
    tokens: bytes = b""
    states: States | None = None


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
            max_resident: most sessions that hold a slot; None for all.
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
        self._next_expiry = math.inf
        """No session expires before."""
        self._serial = 0
        self._lock = threading.RLock()
        self.on_expired: Callable[[str], None] = lambda session_id: None
        """Told the id of each session that expired, with the table locked."""

    def create(
        self,
        *,
        owner: str,
        ttl_s: float,
        solve: Solve,
        is_private: bool = False,
        session_id: str | None = None,
    ) -> SessionView:
        """A new session without memory; ``session_id`` is an id to have, if it is free.

        Raises:
            SessionLimit: there are ``max_sessions`` already.
        """
        with self._lock:
            session = self._add(owner=owner, ttl_s=ttl_s, solve=solve, session_id=session_id)
            session.is_private = is_private
            return self._view(session)

    def add(self, snapshot: Snapshot, *, saved: bool = False) -> SessionView:
        """A session that is as a snapshot has it, but used just now unless it was ``saved``.

        Raises:
            SessionLimit: there are ``max_sessions`` already.
        """
        with self._lock:
            session = self._add(
                owner=snapshot.owner,
                ttl_s=snapshot.ttl_s,
                solve=snapshot.solve,
                session_id=snapshot.session_id,
            )
            self._fill(session, snapshot)
            session.position, session.totals = snapshot.position, snapshot.totals
            session.last_token = snapshot.last_token
            session.revision = snapshot.revision
            session.saved = snapshot.revision if saved else 0
            return self._view(session)

    def add_away(
        self, snapshot: Snapshot, *, position: int, last_token: int | None
    ) -> SessionView | None:
        """A session that the store has; of ``snapshot`` tokens, states and answers are not there.

        Returns:
            The session; None where it has expired, or there are too many.
        """
        with self._lock:
            # A clock that was set back must not make it live longer than its time to live.
            idle_s = max(0.0, self._wall() - snapshot.last_used_time)
            if idle_s > snapshot.ttl_s or len(self._sessions) >= self._max_sessions:
                return None
            session = Session(
                session_id=snapshot.session_id,
                owner=snapshot.owner,
                ttl_s=snapshot.ttl_s,
                solve=snapshot.solve,
                create_time=snapshot.create_time,
                last_used_time=snapshot.last_used_time,
                last_used=self._monotonic() - idle_s,
                position=position,
                totals=snapshot.totals,
                last_token=last_token,
                tokens=None,
                revision=snapshot.revision,
                saved=snapshot.revision,
            )
            self._insert(session)
            return self._view(session)

    def _add(self, *, owner: str, ttl_s: float, solve: Solve, session_id: str | None) -> Session:
        self.expire()
        if len(self._sessions) >= self._max_sessions:
            raise SessionLimit(
                f"sessions must be at most {self._max_sessions}, and that many exist; "
                "delete one or wait until one expires"
            )
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

    def _insert(self, session: Session) -> None:
        assert session.session_id not in self._sessions, "ids are not given twice"
        self._sessions[session.session_id] = session
        self._next_expiry = min(self._next_expiry, session.last_used + session.ttl_s)

    def get(self, session_id: str, owner: str) -> SessionView:
        """The session, if it is the owner's; otherwise ``SessionNotFound``."""
        with self._lock:
            return self._view(self._find(session_id, owner))

    def list(self, owner: str) -> list[SessionView]:
        """The owner's sessions, oldest first."""
        with self._lock:
            self.expire()
            return [self._view(s) for s in self._sessions.values() if s.owner == owner]

    def fork(
        self,
        session_id: str,
        owner: str,
        *,
        ttl_s: float | None = None,
        lease: Lease | None = None,
        copy_id: str | None = None,
    ) -> SessionView:
        """A copy that shares the memory until one of the two goes on.

        Args:
            session_id: of the session to copy, which must not be away.
            owner: whose it is.
            ttl_s: of the copy; None for that of the session.
            lease: of the caller on it, if it has one.
            copy_id: id to have, if it is free.

        Raises:
            SessionNotFound: no such session of this owner.
            SessionBusy: another call is running on it.
            SessionLimit: the table is full.
        """
        with self._lock:
            origin = self._find(session_id, owner)
            if origin.lease is not None and (lease is None or origin.lease != lease.serial):
                raise SessionBusy(session_id)
            assert not origin.is_away, "what is to be copied is fetched first"
            ttl_s = origin.ttl_s if ttl_s is None else ttl_s
            copy = self._add(owner=owner, ttl_s=ttl_s, solve=origin.solve, session_id=copy_id)
            copy.position, copy.totals = origin.position, origin.totals
            copy.last_token, copy.tokens = origin.last_token, origin.tokens
            copy.states = origin.states
            if origin.slot is not None:
                self._slots.retain(origin.slot)
                self._seat(copy, origin.slot)
            return self._view(copy)

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
                session.forget()

    def is_away(self, lease: Lease) -> bool:
        """Whether the session has to be supplied before a job can continue it."""
        with self._lock:
            session = self._holder(lease)
            return session is not None and session.is_away

    def supply(self, lease: Lease, snapshot: Snapshot) -> None:
        """Brings back what the store has of a session that is away."""
        with self._lock:
            session = self._holder(lease)
            if session is not None and session.is_away:
                self._fill(session, snapshot)

    def _fill(self, session: Session, snapshot: Snapshot) -> None:
        session.tokens, session.answers = snapshot.tokens, snapshot.answers
        is_ours = snapshot.fingerprint == self._fingerprint
        session.states = snapshot.states if is_ours else None

    def base(self, lease: Lease) -> Base | None:
        """The memory that a job of this lease continues; None when the lease is over."""
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return None
            if session.slot is not None:
                self._slots.retain(session.slot)
                tokens = session.tokens or b""
                return Base(session.slot, session.position, session.totals, tokens)
            assert session.tokens is not None, "a job on a session that is away"
            return Base(None, session.position, session.totals, session.tokens, session.states)

    def commit(
        self,
        lease: Lease,
        *,
        slot: int | None,
        position: int,
        totals: Totals,
        last_token: int,
        tokens: bytes = b"",
        states: States | None = None,
    ) -> SessionView | None:
        """Makes ``slot`` the session's memory and takes over the caller's hold on it.

        Args:
            lease: of the call.
            slot: None where the session is not to be resident.
            position: tokens held from now on.
            totals: over them.
            last_token: the last of them.
            tokens: ids of those that are new.
            states: of the last tokens, to be stored, or to go on from without a slot.

        Returns:
            The session, or None when the lease is over: then the slot is still the caller's.
        """
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return None
            self._vacate(session)
            if slot is not None:
                self._seat(session, slot)
            session.states = states if slot is None else None
            session.position, session.totals = position, totals
            session.last_token, session.tokens = last_token, (session.tokens or b"") + tokens
            session.revision += 1
            self._touch(session)
            is_kept = states is not None and not session.is_private
            return self._view(session, self._snapshot(session, states) if is_kept else None)

    def settle(self, lease: Lease, slot: int) -> bool:
        """Makes a slot with what the session holds its memory; False where it needs none.

        A hold on the slot is taken over if the answer is True.
        """
        with self._lock:
            session = self._holder(lease)
            if session is None or session.slot is not None:
                return False
            self._seat(session, slot)
            session.states = None
            return True

    def add_answer(
        self, lease: Lease, answer: Answer, *, max_bytes: int, most: int
    ) -> tuple[Answer, ...]:
        """Keeps the answer to a call with an idempotency key; old ones make room.

        Returns:
            All that are kept now, one revision after the last commit.
        """
        with self._lock:
            session = self._holder(lease)
            if session is None:
                return ()
            if answer.size > max_bytes:
                answer = Answer(answer.key, answer.request, None)
            answers = [*session.answers, answer][-most:]
            while len(answers) > 1 and sum(a.size for a in answers) > max_bytes:
                del answers[0]
            session.answers = tuple(answers)
            session.revision += 1
            return session.answers

    def answer(self, lease: Lease, key: str) -> Answer | None:
        """What the call with this key was answered; None where there was none."""
        with self._lock:
            session = self._holder(lease)
            answers = () if session is None else session.answers
            return next((a for a in answers if a.key == key), None)

    def snapshot(self, session_id: str, states: States | None = None) -> Snapshot | None:
        """All of a session; ``states`` of a resident one are for the caller to know.

        Returns:
            None where it is gone, private or away.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.is_private or session.is_away:
                return None
            return self._snapshot(session, session.states if states is None else states)

    def mark_saved(self, session_id: str, revision: int) -> None:
        """The store has a revision of a session."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is not None:
                session.saved = max(session.saved, revision)
                session.forget()

    @property
    def has_room(self) -> bool:
        """Whether one more session may be resident."""
        with self._lock:
            return len(self._resident) < self._max_resident

    def is_resident(self, lease: Lease) -> bool:
        """Whether the session of a lease has a slot."""
        with self._lock:
            session = self._holder(lease)
            return session is not None and session.slot is not None

    def is_private(self, lease: Lease) -> bool:
        """Whether the session of a lease is a stream's own."""
        with self._lock:
            session = self._holder(lease)
            return session is not None and session.is_private

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

    def unsaved(self) -> Sequence[str]:
        """Sessions of which the store lacks the last revision."""
        with self._lock:
            return [
                s.session_id
                for s in self._sessions.values()
                if not (s.is_saved or s.is_private or s.is_away)
            ]

    def is_saved(self, session_id: str) -> bool:
        """Whether the store has the session's last revision."""
        with self._lock:
            session = self._sessions.get(session_id)
            return session is None or session.is_saved

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

    def unseat(self, lease: Lease) -> None:
        """Takes the session of a lease off the device, and forgets its states."""
        with self._lock:
            session = self._holder(lease)
            if session is not None:
                self._vacate(session)
                session.states = None

    def view(self, lease: Lease) -> SessionView | None:
        """The session of a lease, or None when the lease is over."""
        with self._lock:
            session = self._holder(lease)
            return None if session is None else self._view(session)

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

    @property
    def resident(self) -> int:
        """Sessions that hold a slot."""
        with self._lock:
            return len(self._resident)

    def holding(self) -> int:
        """Different slots that sessions hold."""
        with self._lock:
            return len({s.slot for s in self._resident.values()})

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
            if len(self._resident) > self._max_resident:
                found.append(
                    f"{len(self._resident)} resident sessions, of {self._max_resident} at most"
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
        if session.slot is not None:
            self._resident.move_to_end(session.session_id)

    def _seat(self, session: Session, slot: int) -> None:
        session.slot = slot
        self._resident[session.session_id] = session

    def _vacate(self, session: Session) -> None:
        if session.slot is not None:
            del self._resident[session.session_id]
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
