"""The engine: one thread owns the device; everybody else leaves jobs and takes events.

A turn of the thread: take new jobs, drop cancelled and late ones, let waiting ones in, one call of
f for all rows, hand out what it gave. So cancellation, deadlines and new requests wait for one
call of f at most.
"""

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from deq_model.checkpoint import LoadedCheckpoint
from deq_model.errors import CheckpointError
from deq_model.prepared_softmax import PreparedLogSoftmax
from deq_model.products import Format, has_kernel
from deq_model.solvers.options import Method
from deq_model.warm_start import WarmStart
from server.engine.admission import Admission, Places
from server.engine.batch import Batch
from server.engine.costs import CostCurve
from server.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineStopped,
)
from server.engine.forecast import Forecast
from server.engine.jobs import JobRunner
from server.engine.limits import EngineLimits, EngineSnapshot
from server.engine.memory import Memory
from server.engine.observer import Observer
from server.engine.recording import Recording
from server.engine.requests import Job, ScoreJob
from server.engine.results import Event, Failed
from server.engine.scheduler import Scheduler
from server.engine.sessions import SessionTable
from server.engine.slab import Slab, slot_bytes
from server.engine.slots import SlotPool
from server.engine.snapshots import Snapshot
from server.engine.timing import call_costs
from server.engine.work import Work

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORMS: dict[torch.dtype, Format] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

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
        state = torch.promote_types(dtype, torch.float32)
        model = checkpoint.model.to(device, state).eval().requires_grad_(False)
        if checkpoint.tokenizer is None:
            raise CheckpointError(f"checkpoint of model {name!r} has no tokenizer")
        self.name, self.limits = name, limits
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self.fingerprint = checkpoint.fingerprint
        self.n_parameters = model.n_parameters()
        self.device, self.dtype, self.early_int8 = device, dtype, early_int8
        self.threads = threads or torch.get_num_threads()
        weights = model.f.fold().detach()
        del model.f  # the folded weights replace it
        # Each job may hold its base beside what sessions hold, and one may be about to be held.
        n_resident = resident_sessions(limits, slot_bytes(self.config, state))
        n_slot = n_resident + limits.max_running + 1
        self._rows, self._slots = SlotPool(limits.max_running), SlotPool(n_slot)
        window = min(limits.window, self.config.klen)
        self._slab = Slab(
            self.config,
            rows=limits.max_running,
            slots=n_slot,
            window=window,
            device=device,
            dtype=state,
        )
        self.session_bytes = self._slab.bytes_per_slot
        self.sessions = SessionTable(
            self._slots,
            max_sessions=limits.max_sessions,
            max_resident=n_resident,
            session_bytes=self.session_bytes,
            model=name,
            fingerprint=self.fingerprint,
        )
        self._scheduler = Scheduler(
            max_batch_tokens=limits.max_batch_tokens,
            max_running=limits.max_running,
            window=window,
            costs=costs,
        )
        self._batch = Batch(
            model,
            weights,
            self._slab,
            max_rows=limits.max_batch_tokens,
            form=_FORMS[dtype],
            early_int8=early_int8,
            method=self.solver,
            warm_start=None if warm_start is None else warm_start.to(device, dtype),
        )
        self.memory = Memory(
            self._slab,
            self._rows,
            self._slots,
            self.sessions,
            self._batch,
            eos_id=self.tokenizer.eos_id,
            state_format=limits.state_format,
        )
        self._runner = JobRunner(
            softmax=PreparedLogSoftmax(model.softmax, _softmax_form(dtype, device)),
            batch=self._batch,
            slab=self._slab,
            rows=self._rows,
            scheduler=self._scheduler,
            memory=self.memory,
            eos_id=self.tokenizer.eos_id,
            prefix_cache=limits.prefix_cache,
            guess_ahead=limits.guess_ahead,
        )
        self._observer = observer
        self._wake = threading.Condition()
        self._waiting = Admission(
            max_queue=limits.max_queue,
            max_queue_tokens=limits.max_queue_tokens,
            max_owner_queue=limits.max_owner_queue,
            max_owner_queue_tokens=limits.max_owner_queue_tokens,
        )
        self._forecast = Forecast()
        self._places = Places(limits.max_running)
        self._running: list[Work] = []
        self._cancelled: set[str] = set()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._accepting = False
        self._stopping = False
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
        self._accepting = True
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
        work = Work(job, time.monotonic())
        with self._wake:
            work.foretold_s = self._check_room(
                job.owner, work.size, job.deadline, now=work.submitted
            )
            self._waiting.put(work)
            if job.timeline is not None:
                job.timeline.submitted = work.submitted
            self._wake.notify()

    def check_room(self, owner: str, deadline: float | None) -> None:
        """Looks whether a job of the least size would be accepted, before anything is done for one.

        Raises:
            EngineStopped, QueueFull, TooLate: it would not be.
        """
        with self._wake:
            self._check_room(owner, 1, deadline, now=time.monotonic())

    def _check_room(
        self, owner: str, size: int, deadline: float | None, *, now: float
    ) -> float | None:
        """In how many seconds a job would be done, which is accepted now."""
        if not self._accepting:
            raise EngineStopped(f"model {self.name!r} takes no requests: it is not running")
        retry_after_s = self._forecast.retry_after_s(self._waiting.tokens)
        foretold_s = self._forecast.foretell(size, self._waiting.before(owner))
        others_wait = len(self._waiting) > 0
        if deadline is not None and (others_wait or any(not w.finished for w in self._running)):
            self._forecast.check(foretold_s, deadline - now, retry_after_s, others_wait=others_wait)
        self._waiting.check(owner, size, retry_after_s=retry_after_s)
        return foretold_s

    def cancel(self, job_id: str) -> None:
        """Ends a job at the next turn with ``Failed(Cancelled)``; unknown ids are ignored."""
        with self._wake:
            works = [*self._waiting, *self._running]
            if any(work.job.job_id == job_id for work in works):
                self._cancelled.add(job_id)
                self._wake.notify()

    def capture(self, session_id: str) -> "Future[Snapshot | None]":
        """All of a session as it is now, to be kept elsewhere."""
        return self.perform(lambda: self.memory.capture(session_id))

    def perform(self, errand: Callable[[], T]) -> "Future[T]":
        """Has the engine's thread do something between two calls of f.

        Once that has ended nobody else uses the device, and it is done by the caller.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._thread.is_alive() and not self._stopping:
                self._errands.append((errand, future))
                self._wake.notify()
                return future
        self._thread.join()
        _do(errand, future)
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
        with self._wake:
            works = [*self._waiting, *self._running]
            found = self._waiting.problems()
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
        return limits.overload_tol > 0 and len(self._waiting) > limits.overload_queue

    def snapshot(self) -> EngineSnapshot:
        """Gauges, as of now."""
        with self._wake:
            waiting, tokens = len(self._waiting), self._waiting.tokens
            running = len(self._running)
            waits = self._waits()
        used = self._slots.used
        return EngineSnapshot(
            running_jobs=running,
            waiting_jobs=waiting,
            waiting_tokens=tokens,
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
            waiting_for_places=waits["places"],
            waiting_for_share=waits["share"],
            waiting_for_turn=waits["turn"],
            parked_texts=self._runner.parked,
        )

    def stop(self, *, grace_s: float) -> None:
        """Takes no more jobs, lets accepted ones finish for ``grace_s``, then ends the rest."""
        deadline = time.monotonic() + grace_s
        with self._wake:
            self._accepting = False
            self._wake.notify()
        if not self._thread.is_alive():
            return
        with self._wake:
            self._wake.wait_for(
                lambda: not self._waiting and not self._running,
                timeout=max(0.0, deadline - time.monotonic()),
            )
            self._stopping = True
            self._wake.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        try:
            torch.set_num_threads(self.threads)  # of this thread alone
            with torch.inference_mode():
                while self._wait_for_work():
                    self._turn()
        finally:
            self._end_recording()
            self._end_all()

    def _wait_for_work(self) -> bool:
        """Waits until there is some, or sessions may have expired; False at the end."""
        with self._wake:
            work = self._waiting or self._running or self._errands or self._stopping
            if not work:
                self._wake.wait(_IDLE_WAIT_S)
            return not self._stopping

    def _turn(self) -> None:
        try:
            self.sessions.expire()
            self._do_errands()
            if self.limits.resident_idle_s > 0:
                self.memory.leave_idle(self.limits.resident_idle_s)
            self._drop_ended()
            self._admit()
            self._runner.loosen_to = self.limits.overload_tol if self.is_overloaded else 0.0
            if self._running:
                self._runner.step()
                if self._recording is not None:
                    self._recording.stepped()
            self._stumbled = False
        except Exception as error:
            self._stumble(error)
        self._forget_finished()
        self._forecast.look(self._running, self._runner.solved_tokens)

    def _stumble(self, error: Exception) -> None:
        """A turn has failed at what is nobody's own: the next one is as good as any, or the last.

        A bug or a broken device must not take the thread down, nor jobs for nothing; but what
        fails twice in a row would do so for ever.
        """
        log.exception("model %s: a turn of the engine failed", self.name)
        if self._stumbled or self._runner.problems():
            self._runner.fail_all(self._running or list(self._waiting), error)
        self._stumbled = True

    def _do_errands(self) -> None:
        while self._errands:
            _do(*self._errands.popleft())

    def _drop_ended(self) -> None:
        now = time.monotonic()
        with self._wake:
            works = [*self._waiting, *self._running]
            cancelled, self._cancelled = self._cancelled, set()
        for work in works:
            deadline = work.job.deadline
            if work.job.job_id in cancelled:
                self._runner.fail(work, Cancelled("the call was cancelled"))
            elif deadline is not None and now >= deadline:
                self._runner.fail(work, DeadlineExceeded("the deadline passed while solving"))
            else:
                self._runner.stop_late(work, now)
        self._forget_finished()

    def _admit(self) -> None:
        """Gives free room in turn to waiting jobs and to candidates of those that have begun."""
        refusals = 0
        while self._runner.has_room and refusals < 2:
            took = self._runner.start_candidate() if self._candidates_turn else self._begin_next()
            self._candidates_turn = not self._candidates_turn
            refusals = 0 if took else refusals + 1

    def _begin_next(self) -> bool:
        with self._wake:
            # A job whose candidates wait holds memory, but no place: it counts all the same.
            begun = Counter(work.job.owner for work in self._running)
            work = self._waiting.take(lambda owner: self._may_begin(owner, begun))
            if work is None:
                return False
            self._running.append(work)
        self._runner.begin(work)
        return True

    def _may_begin(self, owner: str, begun: Counter[str]) -> bool:
        """Whether there is a place for one more job of an owner; ``begun`` counts them by owner."""
        return self._places.open_to(owner, begun) and self._runner.has_room_for(owner)

    def _waits(self) -> Counter[str]:
        """Waiting jobs by what they wait for: a place, their owner's share, or their turn."""
        begun = Counter(work.job.owner for work in self._running)
        owners = Counter(work.job.owner for work in self._waiting)
        waits = Counter[str]()
        for owner, jobs in owners.items():
            open_to_owner = self._may_begin(owner, begun)
            is_full = not self._runner.has_room
            waits["places" if is_full else "turn" if open_to_owner else "share"] += jobs
        return waits

    def _forget_finished(self) -> None:
        with self._wake:
            for work in [*self._waiting, *self._running]:
                if work.finished:
                    self._forecast.end(work)
                    work.let_go()
            self._running = [work for work in self._running if not work.finished]
            self._waiting.drop_finished()
            if not self._waiting and not self._running:
                self._wake.notify_all()

    def _end_all(self) -> None:
        with self._wake:
            # Also where the thread ends by a defect: errands from now on wait for its end.
            self._accepting, self._stopping = False, True
            works = [*self._waiting, *self._running]
        for work in works:
            self._runner.fail(work, EngineStopped(f"model {self.name!r} is stopping"))
        self._do_errands()
        self._forget_finished()


def resident_sessions(limits: EngineLimits, slot_bytes: int) -> int:
    """How many sessions may have their memory on the device: at least one."""
    if limits.resident_bytes == 0:
        return limits.max_sessions
    return max(1, min(limits.max_sessions, limits.resident_bytes // slot_bytes))


def _do(errand: Callable[[], T], future: "Future[T]") -> None:
    """Does an errand; what it raises is for those who wait for it."""
    try:
        with torch.inference_mode():
            future.set_result(errand())
    except Exception as error:
        future.set_exception(error)


def _softmax_form(dtype: torch.dtype, device: torch.device) -> Format:
    """Log-probabilities would lose two digits to bfloat16, and on a GPU the softmax is small."""
    form = _FORMS[dtype]
    if form not in ("float16", "bfloat16"):
        return form
    return "float16" if device.type == "cpu" and has_kernel("float16", device) else "float32"
