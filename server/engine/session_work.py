"""The table of sessions, as engine and store see it: what calls continue, commit and keep."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.requests import Lease
from server.engine.results import SessionView, Totals
from server.engine.session import Session
from server.engine.session_room import SessionRoom
from server.engine.snapshots import Answer, Snapshot, States


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


class SessionWork(SessionRoom):
    """What is done with a lease on a session, and with sessions that come and go."""

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

    def is_private(self, lease: Lease) -> bool:
        """Whether the session of a lease is a stream's own."""
        with self._lock:
            session = self._holder(lease)
            return session is not None and session.is_private

    def give_up_memory(self, lease: Lease) -> None:
        """Forgets all of a lease's session but its tokens, and marks it: it held no numbers."""
        with self._lock:
            session = self._holder(lease)
            if session is not None:
                self._vacate(session)
                session.states = None
                session.repairs += 1

    def view(self, lease: Lease) -> SessionView | None:
        """The session of a lease, or None when the lease is over."""
        with self._lock:
            session = self._holder(lease)
            return None if session is None else self._view(session)

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

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether the session of a snapshot is there, and not another one that has its id."""
        with self._lock:
            return self._of(snapshot) is not None

    def mark_saved(self, snapshot: Snapshot) -> None:
        """The store has a revision of a session, which may be gone and another one have its id."""
        with self._lock:
            session = self._of(snapshot)
            if session is not None:
                session.saved = max(session.saved, snapshot.revision)
                session.forget()

    def _of(self, snapshot: Snapshot) -> Session | None:
        session = self._sessions.get(snapshot.session_id)
        is_same = session is not None and session.create_time == snapshot.create_time
        return session if is_same else None

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
