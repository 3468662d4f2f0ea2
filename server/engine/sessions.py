"""The table of sessions: who owns which memory, and who may work on it now."""

from server.engine.errors import SessionBusy
from server.engine.requests import Lease
from server.engine.results import SessionView
from server.engine.session import Session
from server.engine.session_work import SessionWork
from server.engine.snapshots import Snapshot
from server.engine.solve import Solve


class SessionTable(SessionWork):
    """Sessions by id. Thread-safe; never touches the device.

    A session's slot is never written while the session holds it: a call works in a slot of its own
    and ``commit`` exchanges the two. So a call that fails leaves no trace, and a fork is free.
    """

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
            session.revision, session.repairs = snapshot.revision, snapshot.repairs
            session.saved = snapshot.revision if saved else 0
            return self._view(session)

    def add_away(
        self, snapshot: Snapshot, *, position: int, last_token: int | None, idle_s: float
    ) -> SessionView | None:
        """A session that the store has; of ``snapshot`` tokens, states and answers are not there.

        Args:
            snapshot: the session.
            position: tokens that it holds.
            last_token: the last of them.
            idle_s: seconds since it was used last.

        Returns:
            The session; None where it has expired.

        Raises:
            SessionLimit: there are ``max_sessions`` already.
        """
        with self._lock:
            if idle_s > snapshot.ttl_s:
                return None
            self._check_room()
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
                repairs=snapshot.repairs,
                saved=snapshot.revision,
            )
            self._insert(session)
            return self._view(session)

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

    def release_kept(self, lease: Lease, *, held: int = 0) -> bool:
        """Gives the right back, unless the store lacks what the session has come to.

        Once it is given back nothing is committed by it, so that nothing can come between.

        Args:
            lease: of the call.
            held: revision that waits on its way to the store, which is as good.

        Returns:
            Whether it is given back.
        """
        with self._lock:
            session = self._holder(lease)
            if session is not None and not session.is_private:
                if max(session.saved, held) < session.revision:
                    return False
            self.release(lease)
            return True

    def release(self, lease: Lease) -> None:
        """Gives the right back; giving it back twice does nothing."""
        with self._lock:
            session = self._holder(lease)
            if session is not None:
                session.lease = None
                self._touch(session)
                session.forget()
