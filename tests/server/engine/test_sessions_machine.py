"""The table of sessions against a dictionary: every call, two owners, clocks that also go back,
room on the device for half of the sessions, ids that are given again.
"""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from server.engine.errors import SessionLimit
from server.engine.requests import Lease
from server.engine.results import Totals
from server.engine.snapshots import States
from server.engine.solve import Solve
from tests.server.engine.sessions_model import (
    MAX_RESIDENT,
    MAX_SESSIONS,
    OWNERS,
    SLOTS,
    STATES,
    TTLS,
    Expected,
    SessionsModel,
    snapshot_of,
)


class Sessions(SessionsModel):
    """Random calls; after each, sessions, leases and the holders of every slot add up."""

    # Calls

    @rule(owner=OWNERS, ttl_s=TTLS, data=st.data())
    def create(self, owner: str, ttl_s: float, data: st.DataObject) -> None:
        """Also with the id of one that is gone, as an idempotency key may have it."""
        self.expire()
        given = data.draw(st.none() | st.sampled_from(self.gone)) if self.gone else None
        if len(self.live) == MAX_SESSIONS:
            with pytest.raises(SessionLimit, match=f"at most {MAX_SESSIONS}"):
                self.table.create(owner=owner, ttl_s=ttl_s, solve=Solve(), session_id=given)
            return
        self.wall += 1.0  # what is made anew is made later
        view = self.table.create(owner=owner, ttl_s=ttl_s, solve=Solve(), session_id=given)
        assert view.session_id not in self.live
        if given is None:
            assert view.session_id not in self.gone
        else:
            assert view.session_id == given
            self.gone.remove(given)
        self.live[view.session_id] = Expected(owner, ttl_s, self.now, self.wall, self.wall)
        self.check_view(view, self.live[view.session_id])

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        session_id, owner = self.any_id(data)
        error = self.error(session_id, owner, may_be_busy=True)
        if error:
            with pytest.raises(error, match=session_id):
                self.table.get(session_id, owner)
        else:
            self.check_view(self.table.get(session_id, owner), self.live[session_id])

    @rule(owner=OWNERS)
    def list(self, owner: str) -> None:
        self.expire()
        found = [view.session_id for view in self.table.list(owner)]
        assert found == [key for key, session in self.live.items() if session.owner == owner]

    @rule(data=st.data(), ttl_s=st.none() | TTLS)
    def fork(self, data: st.DataObject, ttl_s: float | None) -> None:
        origin, owner = self.any_id(data)
        error = self.error(origin, owner, may_be_busy=False)
        if error is None and len(self.live) == MAX_SESSIONS:
            error = SessionLimit
        if error:
            with pytest.raises(error):
                self.table.fork(origin, owner, ttl_s=ttl_s)
            return
        if self.live[origin].away:
            return  # is fetched first
        view, source = self.table.fork(origin, owner, ttl_s=ttl_s), self.live[origin]
        self.live[view.session_id] = Expected(
            owner,
            source.ttl_s if ttl_s is None else ttl_s,
            self.now,
            self.wall,
            self.wall,
            slot=source.slot,
            position=source.position,
            tokens=source.tokens,
        )
        self.check_view(view, self.live[view.session_id])

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        session_id, owner = self.any_id(data)
        error = self.error(session_id, owner, may_be_busy=False)
        if error:
            with pytest.raises(error):
                self.table.delete(session_id, owner)
        else:
            self.table.delete(session_id, owner)
            self.drop(session_id)

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        session_id, owner = self.any_id(data)
        error = self.error(session_id, owner, may_be_busy=False)
        if error:
            with pytest.raises(error):
                self.table.acquire(session_id, owner)
        else:
            lease = self.table.acquire(session_id, owner)
            assert lease not in self.over
            self.live[session_id].lease = lease
            self.touch(self.live[session_id])

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Also leases that are over, which changes nothing."""
        lease = self.any_lease(data)
        if lease is None:
            return
        self.table.release(lease)
        session = self.holder(lease)
        if session:
            session.lease = None
            self.touch(session)
            session.forget()
            self.over.append(lease)

    @rule(data=st.data())
    def take_base(self, data: st.DataObject) -> None:
        lease = self.any_lease(data)
        session = self.holder(lease) if lease else None
        if lease is None or (session and session.away):
            return
        base = self.table.base(lease)
        if session is None:
            assert base is None
            return
        assert base is not None
        assert (base.slot, base.position) == (session.slot, session.position)
        assert base.slot is not None or base.tokens == session.tokens
        self.bases.append(base)

    @precondition(lambda self: self.bases)
    @rule(data=st.data())
    def drop_base(self, data: st.DataObject) -> None:
        base = self.bases.pop(data.draw(st.integers(0, len(self.bases) - 1)))
        if base.slot is not None:
            self.pool.release(base.slot)

    def make_room(self, lease: Lease, states: States | None) -> bool:
        """As the engine does it: idle sessions leave, until there is room or none is left."""
        for sharers in self.table.could_leave(lease):
            if self.table.has_room(lease):
                break
            slots = {self.live[session_id].slot for session_id in sharers}
            assert len(slots) == 1
            assert None not in slots
            for session_id in sharers:
                session = self.live[session_id]
                is_kept = states is not None or session.saved == session.revision
                assert self.table.vacate(session_id, states) == is_kept
                if is_kept:
                    session.slot = None
                    session.forget()
        assert self.table.has_room(lease) == self.has_room(lease)
        return self.has_room(lease)

    def all_who_may_left(self, lease: Lease) -> bool:
        """Whether what is on the device shares a slot with what a call is working on."""
        own = self.holder(lease)
        others = [s for s in self.live.values() if s is not own and s.slot is not None]
        busy = {s.slot for s in others if s.lease}
        return all(s.slot in busy for s in others)

    @rule(data=st.data(), more=st.integers(1, 5), states=st.sampled_from((None, STATES)))
    def commit(self, data: st.DataObject, more: int, states: States | None) -> None:
        """Also with leases that are over: then the slot stays the caller's."""
        lease = self.any_lease(data)
        session = self.holder(lease) if lease else None
        if lease is None or (session and session.away):
            return  # is fetched first
        has_room = self.make_room(lease, states)
        assert has_room or session is None or states is None or self.all_who_may_left(lease)
        # One that is not resident goes on from its states; whose lease is over, has no session.
        slot = self.pool.acquire() if has_room or session is None else None
        if slot is None and (has_room or session is None):
            assert self.pool.used == SLOTS
            return
        position = more + (session.position if session else 0)
        tokens = bytes(4 * more)
        view = self.table.commit(
            lease,
            slot=slot,
            position=position,
            totals=Totals(position, -1.0),
            last_token=1,
            tokens=tokens,
            states=STATES,
        )
        if session is None:
            assert view is None
            assert slot is not None
            self.pool.release(slot)
            return
        session.slot, session.position = slot, position
        session.tokens, session.revision = session.tokens + tokens, session.revision + 1
        self.touch(session)
        assert view is not None
        self.check_view(view, session)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """A slot with what the session holds already, if there is room for it."""
        lease = self.any_lease(data)
        session = self.holder(lease) if lease else None
        if lease is None or session is None or session.away or not self.has_room(lease):
            return
        slot = self.pool.acquire()
        if slot is None:
            return
        is_taken = self.table.settle(lease, slot)
        assert is_taken == (session.slot is None)
        if is_taken:
            session.slot = slot
        else:
            self.pool.release(slot)

    # What the keeper of the store does

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(list(self.live)))
        session = self.live[session_id]
        unsaved = {k for k, s in self.live.items() if s.saved < s.revision}
        assert set(self.table.unsaved()) == unsaved
        self.on_their_way.append(snapshot_of(session_id, session))

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def told_of_a_save(self, data: st.DataObject) -> None:
        """Late, maybe: the session has gone on, or is gone, or another one has its id."""
        index = data.draw(st.integers(0, len(self.on_their_way) - 1))
        snapshot = self.on_their_way.pop(index)
        session = self.live.get(snapshot.session_id)
        is_same = session is not None and session.created == snapshot.create_time
        assert self.table.is_current(snapshot) == is_same
        self.table.mark_saved(snapshot)
        if session is None or not is_same:
            return
        session.saved = max(session.saved, snapshot.revision)
        session.forget()
        assert self.table.is_saved(snapshot.session_id) == (session.saved == session.revision)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), states=st.sampled_from((None, STATES)))
    def evict(self, data: st.DataObject, states: States | None) -> None:
        """Off the device, if no call uses it and what it goes on from is somewhere."""
        session_id = data.draw(st.sampled_from(list(self.live)))
        session = self.live[session_id]
        is_kept = states is not None or session.saved == session.revision
        may_go = session.lease is None and session.slot is not None and is_kept
        assert self.table.vacate(session_id, states) == may_go
        if may_go:
            session.slot = None
            session.forget()

    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        """From the store, for a call."""
        lease = self.any_lease(data)
        session = self.holder(lease) if lease else None
        if lease is None:
            return
        assert self.table.is_away(lease) == bool(session and session.away)
        if session and session.away:
            self.table.supply(lease, snapshot_of(lease.session_id, session))
            session.away = False

    @rule()
    def expire_now(self) -> None:
        before = len(self.live)
        self.expire()
        assert self.table.expire() == before - len(self.live)

    @rule(seconds=st.sampled_from((-30.0, 0.0, 1.0, 6.0, 60.0)), wall=st.floats(-1e6, 1e6))
    def turn_clocks(self, seconds: float, wall: float) -> None:
        self.now += seconds
        self.wall += wall

    # What holds at every time

    @invariant()
    def adds_up(self) -> None:
        assert not self.table.problems()
        away = {k for k, s in self.table._sessions.items() if s.is_away}
        assert away == {k for k, s in self.live.items() if s.away}
        assert len(self.table) == len(self.live)
        holders = Counter(s.slot for s in self.live.values() if s.slot is not None)
        assert self.table.holding() == len(holders) <= MAX_RESIDENT
        holders += Counter(base.slot for base in self.bases if base.slot is not None)
        assert self.pool._holders == [holders[slot] for slot in range(SLOTS)]
        assert self.pool.used == len(holders)

    def teardown(self) -> None:
        for base in self.bases:
            if base.slot is not None:
                self.pool.release(base.slot)
        for session in self.live.values():
            if session.lease:
                self.table.release(session.lease)
        self.now += 2e9
        self.table.expire()
        assert (len(self.table), self.pool.used) == (0, 0)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
