"""What jobs take from sessions and leave to them: slots of the slab's store."""

import logging

import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.errors import Cancelled
from server.engine.leaving import Leaving
from server.engine.results import SessionView, Totals
from server.engine.session_work import Base
from server.engine.sessions import SessionTable
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.snapshots import StateFormat, pack_tokens, unpack_tokens
from server.engine.solve import Solved, SolveStats
from server.engine.states import tensor_of
from server.engine.work import Run, Work

log = logging.getLogger(__name__)


class Memory(Leaving):
    """Bases that jobs continue, and commits of what they came to. On the engine's thread.

    Attributes:
        captures: whether commits come with all that a store needs.
        from_states: sessions that came back by their states.
        from_tokens: sessions that had to be solved again.
        repaired: those of them whose memory held no numbers.
    """

    def __init__(
        self,
        slab: Slab,
        rows: SlotPool,
        slots: SlotPool,
        sessions: SessionTable,
        batch: Batch,
        *,
        eos_id: int,
        state_format: StateFormat = "float32",
    ) -> None:
        """Takes the memory, its rows and slots, the sessions that hold most of the slots."""
        super().__init__(slab, slots, sessions, state_format)
        self._rows, self._batch, self._eos_id = rows, batch, eos_id
        self.captures = False
        self.from_states = self.from_tokens = self.repaired = 0

    def take_base(self, work: Work) -> None:
        """Has a job hold what its session has come to, if it has a session.

        A session without a slot gets one by its states; without those the job is to solve its
        tokens again.

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
        if base.slot is not None and not self._slab.is_finite(base.slot):
            self._heal(work, base)
        elif base.slot is None and base.position > 0:
            tokens = unpack_tokens(base.tokens)
            z_star = self._usable(base)
            if z_star is not None and not bool(torch.isfinite(z_star).all()):
                self._heal(work, base)
                return
            if z_star is None:
                self._solve_again(work, tokens)
                return
            assert base.states is not None
            self.from_states += 1
            work.base_slot = self._revive(tokens, z_star, base.states.solved)
            self.settle(work)

    def _heal(self, work: Work, base: Base) -> None:
        """Marks a session whose memory holds no numbers, and has its tokens be solved again."""
        lease = work.job.lease
        assert lease is not None, "only sessions have bases"
        log.error("session %s: its memory holds no numbers; it is solved again", lease.session_id)
        self.release_base(work)
        self._sessions.give_up_memory(lease)
        self.repaired += 1
        work.stats += SolveStats(repaired_tokens=base.position)
        self._solve_again(work, unpack_tokens(base.tokens))

    def _solve_again(self, work: Work, tokens: list[int]) -> None:
        self.from_tokens += 1
        work.again = tuple(tokens)

    def _usable(self, base: Base) -> Tensor | None:
        """States ``(n, d_model)`` of a base on the device; None where they do not fit.

        Whose checkpoint they are of was looked at when they came.
        """
        flat = tensor_of(base.states, base.position, self._slab.config)
        return None if flat is None else flat.to(self._slab.key.device, self._slab.key.dtype)

    def _revive(self, tokens: list[int], z_star: Tensor, solved: Solved) -> int:
        """A slot, held by the caller, with the memory that the last tokens' states make."""
        length = len(tokens) + 1
        start = length - len(z_star)
        row = self._rows.acquire()
        assert row is not None, "a job that begins has a row to itself"
        try:
            self._slab.reset(row)
            inputs = [self._eos_id, *tokens][start:]
            self._batch.rebuild(row, inputs, z_star, start=start)
            self._slab.advance(row, length, solved)
            return self._keep_row(row)
        finally:
            self._rows.release(row)

    def settle(self, work: Work) -> None:
        """Makes the slot that a job holds its session's as well, if there is room for it."""
        lease, slot = work.job.lease, work.base_slot
        if lease is None or slot is None or not self._make_room(lease):
            return
        self._slots.retain(slot)
        is_taken = False
        try:
            is_taken = self._sessions.settle(lease, slot)
        finally:
            if not is_taken:
                self._slots.release(slot)

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
        return self._keep_row(run.sequence.slot)

    def _keep_row(self, row: int) -> int:
        slot = self._slots.acquire()
        assert slot is not None, "there is a slot for every resident session and running job"
        try:
            self._slab.save(row, slot)
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
        lease = work.job.lease
        assert lease is not None, "without a session there is nothing to commit to"
        if run.held == 0:
            return None
        if run.last is not None:
            # As the job's own tolerance has it, whatever the batch was told.
            self._slab.advance(row, self._slab.length(row), run.last)
        slot = self.keep(run) if self._make_room(lease) else None
        stored = self.captures and not self._sessions.is_private(lease)
        try:
            states = None
            if slot is None or stored:
                states = self._states(self._slab.states(row), self._slab.solved(row))
            session = self._sessions.commit(
                lease,
                slot=slot,
                position=work.base_position + run.held,
                totals=work.base_totals + totals,
                last_token=run.sequence.inputs[run.sequence.accepted - 1],
                tokens=pack_tokens(run.accepted_tokens),
                states=states,
            )
        except Exception:
            if slot is not None:
                self._slots.release(slot)  # the job fails, and nobody would know of the slot
            raise
        if session is None:
            if slot is not None:
                self._slots.release(slot)
            raise Cancelled("the session was released")
        return session


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no room; on a CPU torch tells that by its words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
