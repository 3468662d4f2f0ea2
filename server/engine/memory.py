"""What jobs take from sessions and leave to them: slots of the slab's store."""

from server.engine.errors import Cancelled
from server.engine.results import SessionView, Totals
from server.engine.sessions import SessionTable
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.work import Run, Work


class Memory:
    """Bases that jobs continue, and commits of what they came to. On the engine's thread."""

    def __init__(self, slab: Slab, slots: SlotPool, sessions: SessionTable) -> None:
        """Takes the memory, the slots of its store and the sessions that hold most of them."""
        self._slab, self._slots, self._sessions = slab, slots, sessions

    def take_base(self, work: Work) -> None:
        """Has a job hold what its session has come to, if it has a session.

        Raises:
            Cancelled: the lease is over.
        """
        if work.job.lease is None:
            return
        base = self._sessions.base(work.job.lease)
        if base is None:
            raise Cancelled("the session was released")
        work.base_slot = base.slot
        work.base_position, work.base_totals = base.position, base.totals

    def release_base(self, work: Work) -> None:
        """Gives back the slot that a job holds, if it holds one."""
        if work.base_slot is not None:
            self._slots.release(work.base_slot)
            work.base_slot = None

    def view(self, work: Work) -> SessionView | None:
        """The session of a job that changes nothing in it; None without one.

        Raises:
            Cancelled: the lease is over.
        """
        if work.job.lease is None:
            return None
        session = self._sessions.view(work.job.lease)
        if session is None:
            raise Cancelled("the session was released")
        return session

    def keep(self, run: Run) -> int:
        """A slot, held by the caller, with what the run's row has come to."""
        slot = self._slots.acquire()
        assert slot is not None, "there is a slot for every session and every running job"
        try:
            self._slab.save(run.sequence.slot, slot)
        except Exception:
            self._slots.release(slot)  # the job fails, and nobody would know of the slot
            raise
        return slot

    def commit(self, run: Run, totals: Totals) -> SessionView | None:
        """Keeps a run's memory for its job's session; None when there is nothing to commit.

        Raises:
            Cancelled: the lease is over.
        """
        work, row = run.work, run.sequence.slot
        assert work.job.lease is not None, "without a session there is nothing to commit to"
        if run.held == 0:
            return None
        if run.last is not None:
            # As the job's own tolerance has it, whatever the batch was told.
            self._slab.advance(row, self._slab.length(row), run.last)
        slot = self.keep(run)
        session = self._sessions.commit(
            work.job.lease,
            slot=slot,
            position=work.base_position + run.held,
            totals=work.base_totals + totals,
            last_token=run.sequence.inputs[run.sequence.accepted - 1],
        )
        if session is None:
            self._slots.release(slot)
            raise Cancelled("the session was released")
        return session
