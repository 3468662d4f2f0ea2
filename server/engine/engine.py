"""The engine: one thread owns the device; everybody else leaves jobs and takes events.

A turn of the thread: take new jobs, drop cancelled and late ones, let waiting ones in, one call of
f for all rows, hand out what it gave. So cancellation, deadlines and new requests wait for one
call of f at most.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from deq_model.checkpoint import LoadedCheckpoint
from deq_model.solvers.options import Method
from deq_model.warm_start import WarmStart
from server.engine.admission import Places
from server.engine.costs import CostCurve
from server.engine.desk import Desk, do
from server.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineStopped,
)
from server.engine.limits import EngineLimits, EngineSnapshot
from server.engine.machine import build
from server.engine.observer import Observer
from server.engine.recording import Recording
from server.engine.requests import Job, ScoreJob
from server.engine.results import Event, Failed
from server.engine.snapshots import Snapshot
from server.engine.timing import call_costs

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDLE_WAIT_S = 1.0
"""How long the idle thread sleeps before it looks for expired sessions."""


class Engine:
    """Solves the jobs of one model. Its public methods are thread-safe."""

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        limits: EngineLimits,
        observer: Observer | None = None,
        warm_start: WarmStart | None = None,
        early_int8: bool = False,
        threads: int = 0,
        costs: CostCurve | None = None,
    ) -> None:
        """Takes the checkpoint over: its weights are folded, cast and moved.

        Args:
            checkpoint: model, tokenizer and fingerprint; the model is the engine's from now on.
            name: of the model, for messages.
            device: where to solve.
            dtype: of the matrix products of f; states are in float32, or float64 with float64.
            limits: sizes.
            observer: told about every call of f, once the engine is warm.
            warm_start: map to first states, fitted for this checkpoint; None for zeros.
            early_int8: compute the feed-forward by differences in 8 bits, on a CPU that can.
            threads: of the CPU, for one tensor operation; 0 for as many as torch has.
            costs: what a call of f takes by its rows, see ``measure_calls``; until they are known
                calls are filled, whatever time they take.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        machine = build(
            checkpoint,
            name=name,
            device=device,
            dtype=dtype,
            limits=limits,
            method=self.solver,
            warm_start=warm_start,
            early_int8=early_int8,
            costs=costs,
        )
        self.name, self.limits = name, limits
        self.config, self.tokenizer = checkpoint.config, machine.tokenizer
        self.fingerprint = checkpoint.fingerprint
        self.n_parameters = machine.n_parameters
        self.device, self.dtype, self.early_int8 = device, dtype, early_int8
        self.threads = threads or torch.get_num_threads()
        self.sessions, self.memory = machine.sessions, machine.memory
        self.session_bytes = machine.slab.bytes_per_slot
        self._slab, self._rows, self._slots = machine.slab, machine.rows, machine.slots
        self._scheduler, self._batch = machine.scheduler, machine.batch
        self._runner = machine.runner
        self._observer = observer
        self._desk = Desk(name, limits, open_to=self._may_begin)
        self._places = Places(limits.max_running)
        self._candidates_turn = self._stumbled = False
        self._recording: Recording | None = None
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)

    @property
    def solver(self) -> Method:
        """Name of the fixed-point solver."""
        return "broyden"

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def measure_calls(self) -> None:
        """Times calls of f of several sizes, by which rows are given out; before ``start``."""
        others = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            self._batch.warm_up()
            self._scheduler.costs = call_costs(self._batch, self._slab, self.limits)
        torch.set_num_threads(others)

    def start(self) -> None:
        """Starts the thread, solves a first text to warm up, then takes jobs.

        Raises:
            EngineError: that text could not be solved.
        """
        self._desk.open()
        self._thread.start()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        tokens = tuple(i % self.config.n_token for i in range(2 * self.limits.window))
        self.submit(ScoreJob(job_id="warm-up", tokens=tokens, sink=events.put))
        event = events.get()
        if isinstance(event, Failed):
            self.stop(grace_s=0)
            raise event.error
        if self._observer is not None:
            self._runner.observer = self._observer

    def submit(self, job: Job) -> None:
        """Accepts a job; its events go to its sink, the last one is terminal.

        Raises:
            EngineStopped: the engine takes no jobs.
            QueueFull: too many jobs or tokens are waiting.
            TooLate: it would wait beyond its deadline.
            InvalidRequest: there is no such priority.
        """
        self._desk.submit(job)

    def check_room(self, owner: str, deadline: float | None) -> None:
        """Looks whether a job of the least size would be accepted, before anything is done for one.

        Raises:
            EngineStopped, QueueFull, TooLate: it would not be.
        """
        self._desk.check_room(owner, deadline)

    def cancel(self, job_id: str) -> int | None:
        """Ends a job at the next turn with ``Failed(Cancelled)``; one that is over stays as it is.

        Returns:
            Tokens that have been solved for it; None where it is over.
        """
        return self._desk.cancel(job_id)

    def capture(self, session_id: str) -> "Future[Snapshot | None]":
        """All of a session as it is now, to be kept elsewhere."""
        return self.perform(lambda: self.memory.capture(session_id))

    def perform(self, errand: Callable[[], T]) -> "Future[T]":
        """Has the engine's thread do something between two calls of f.

        Once that has ended nobody else uses the device, and it is done by the caller.
        """
        future: Future[T] = Future()
        if not self._thread.is_alive() or not self._desk.leave(errand, future):
            self._thread.join()
            do(errand, future)
        return future

    def check(self) -> "Future[list[str]]":
        """What does not add up, looked at between two calls of f: nothing, unless it is broken."""
        return self.perform(self._problems)

    def record(self, recording: Recording) -> "Future[None]":
        """Has the next steps be recorded; one recording at a time."""

        def begin() -> None:
            recording.begin()
            self._recording = recording

        return self.perform(begin)

    def end_recording(self) -> "Future[None]":
        """Ends what is being recorded, if it is not over."""
        return self.perform(self._end_recording)

    def _end_recording(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.end()

    def _problems(self) -> list[str]:
        works, found = self._desk.works(), self._desk.problems()
        found += self._runner.problems()
        with self.sessions.at_rest() as held:
            bases = Counter(work.base_slot for work in works if work.base_slot is not None)
            found += self._slots.problems(held + bases, "slot")
            found += self.sessions.problems()
        return [f"model {self.name!r}: {problem}" for problem in found]

    @property
    def is_overloaded(self) -> bool:
        """Whether so many jobs wait that tolerances are loosened."""
        limits = self.limits
        return limits.overload_tol > 0 and self._desk.waiting_jobs > limits.overload_queue

    def snapshot(self) -> EngineSnapshot:
        """Gauges, as of now."""
        used, state = self._slots.used, self._desk.state(is_full=not self._runner.has_room)
        return EngineSnapshot(
            running_jobs=state.running,
            waiting_jobs=state.waiting,
            waiting_tokens=state.tokens,
            sessions=len(self.sessions),
            slots_used=used,
            slots_total=self._slots.total,
            memory_bytes=self._slab.nbytes,
            session_memory_bytes=self.sessions.holding() * self.session_bytes,
            loosening=self.is_overloaded,
            prefix_tokens=self._runner.prefix_tokens,
            resident_sessions=self.sessions.resident,
            sessions_from_states=self.memory.from_states,
            sessions_from_tokens=self.memory.from_tokens,
            sessions_repaired=self.memory.repaired,
            repeated_parts=self._runner.repeated,
            sessions_left_idle=self.memory.left_idle,
            sessions_left_full=self.memory.left_full,
            waiting_for_places=state.by_cause["places"],
            waiting_for_share=state.by_cause["share"],
            waiting_for_turn=state.by_cause["turn"],
            parked_texts=self._runner.parked,
        )

    def stop(self, *, grace_s: float) -> None:
        """Takes no more jobs, lets accepted ones finish for ``grace_s``, then ends the rest."""
        deadline = time.monotonic() + grace_s
        self._desk.close()
        if self._thread.is_alive():
            self._desk.wait_empty(max(0.0, deadline - time.monotonic()))
            self._desk.end()
            self._thread.join()

    def _loop(self) -> None:
        try:
            torch.set_num_threads(self.threads)  # of this thread alone
            with torch.inference_mode():
                while self._desk.wait_for_work(_IDLE_WAIT_S):
                    self._turn()
        finally:
            self._end_recording()
            self._end_all()

    def _turn(self) -> None:
        try:
            self.sessions.expire()
            self._desk.do_errands()
            if self.limits.resident_idle_s > 0:
                self.memory.leave_idle(self.limits.resident_idle_s)
            self._drop_ended()
            self._admit()
            self._runner.loosen_to = self.limits.overload_tol if self.is_overloaded else 0.0
            if self._desk.running:
                self._runner.step()
                if self._recording is not None:
                    self._recording.stepped()
            self._stumbled = False
        except Exception as error:
            self._stumble(error)
        self._desk.forget_finished()
        self._desk.forecast.look(self._desk.running, self._runner.solved_tokens)

    def _stumble(self, error: Exception) -> None:
        """A turn has failed at what is nobody's own: the next one is as good as any, or the last.

        A bug or a broken device must not take the thread down, nor jobs for nothing; but what
        fails twice in a row would do so for ever.
        """
        log.exception("model %s: a turn of the engine failed", self.name)
        if self._stumbled or self._runner.problems():
            self._runner.fail_all(self._desk.running or self._desk.works(), error)
        self._stumbled = True

    def _drop_ended(self) -> None:
        now = time.monotonic()
        works, cancelled = self._desk.take_cancelled()
        for work in works:
            deadline = work.job.deadline
            if work.job.job_id in cancelled:
                self._runner.fail(work, Cancelled("the call was cancelled"))
            elif deadline is not None and now >= deadline:
                self._runner.fail(work, DeadlineExceeded("the deadline passed while solving"))
            else:
                self._runner.stop_late(work, now)
        self._desk.forget_finished()

    def _admit(self) -> None:
        """Gives free room in turn to waiting jobs and to candidates of those that have begun."""
        refusals = 0
        while self._runner.has_room and refusals < 2:
            took = self._runner.start_candidate() if self._candidates_turn else self._begin_next()
            self._candidates_turn = not self._candidates_turn
            refusals = 0 if took else refusals + 1

    def _begin_next(self) -> bool:
        work = self._desk.begin_next()
        if work is not None:
            self._runner.begin(work)
        return work is not None

    def _may_begin(self, owner: str, begun: Counter[str]) -> bool:
        """Whether there is a place for one more job of an owner; ``begun`` counts them by owner."""
        return self._places.open_to(owner, begun) and self._runner.has_room_for(owner)

    def _end_all(self) -> None:
        self._desk.end()  # also where the thread ends by a defect
        for work in self._desk.works():
            self._runner.fail(work, EngineStopped(f"model {self.name!r} is stopping"))
        self._desk.do_errands()
        self._desk.forget_finished()
