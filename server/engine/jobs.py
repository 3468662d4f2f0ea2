"""From jobs to sequences and back: what each accepted token means to its job."""

import logging
import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from deq_model.adaptive_softmax import ClusteredLogSoftmax
from server.engine.admission import Places
from server.engine.batch import Accepted, Batch
from server.engine.errors import Cancelled, EngineError, EngineFailed, NotConverged
from server.engine.next_token import NextToken
from server.engine.observer import Observer, Unobserved
from server.engine.predictions import Prediction, score, sources
from server.engine.requests import GenerateJob, ScoreJob
from server.engine.results import (
    Drawn,
    Failed,
    Generated,
    PromptSolved,
    Scored,
    SessionView,
    TokenLogprob,
    Totals,
)
from server.engine.sampling import draw
from server.engine.scheduler import Scheduler, Sequence
from server.engine.sessions import SessionTable
from server.engine.sharing import Sharing
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.solve import Solve, Solved, SolveStats
from server.engine.work import Ending, Run, Work, totals_of

log = logging.getLogger(__name__)


class JobRunner:
    """Works on jobs, one call of f at a time. Lives on the engine's thread."""

    def __init__(
        self,
        *,
        softmax: ClusteredLogSoftmax,
        batch: Batch,
        slab: Slab,
        rows: SlotPool,
        slots: SlotPool,
        scheduler: Scheduler,
        sessions: SessionTable,
        eos_id: int,
        prefix_cache: int = 0,
    ) -> None:
        """Takes the engine's parts; ``rows`` are those of the slab's work area."""
        self.observer: Observer = Unobserved()
        self.loosen_to = 0.0
        """Tolerance to which tokens may be loosened now; 0 for none."""
        self._softmax = softmax
        self._batch, self._slab = batch, slab
        self._rows, self._slots = rows, slots
        self._scheduler, self._sessions = scheduler, sessions
        self._eos_id = eos_id
        self._runs: dict[Sequence, Run] = {}
        self._predictions: list[Prediction] = []
        self._with_candidates: list[Work] = []
        self._places = Places(scheduler.max_running)
        self._call_s = 0.0
        self._sharing = Sharing(batch, slab, max_tokens=prefix_cache)

    @property
    def prefix_tokens(self) -> int:
        """Tokens of ended prompts whose states are kept."""
        return self._sharing.kept_tokens

    @property
    def has_room(self) -> bool:
        """Whether another sequence may run."""
        return self._scheduler.has_room

    def has_room_for(self, owner: str) -> bool:
        """Whether another sequence of an owner may run."""
        return self._places.open_to(owner, self._scheduler.running_of)

    def begin(self, work: Work) -> None:
        """Gives a job its memory and its first rows."""
        work.started = time.monotonic()
        with self._alone(work):
            self._begin(work)

    @contextmanager
    def _alone(self, work: Work) -> Iterator[None]:
        """What breaks inside ends this job and no other."""
        try:
            yield
        except EngineError as error:
            self.fail(work, error)
        except Exception:
            # Sinks and text sinks are the caller's code, run on this thread: whatever they raise
            # must not end the jobs of others.
            log.exception("job %s failed", work.job.job_id)
            self.fail(work, EngineFailed("internal error while answering"))

    def _begin(self, work: Work) -> None:
        job = work.job
        if job.lease is not None:
            base = self._sessions.base(job.lease)
            if base is None:
                raise Cancelled("the session was released")
            work.base_slot = base.slot
            work.base_position, work.base_totals = base.position, base.totals
        if isinstance(job, ScoreJob):
            work.waiting_candidates.extend(range(len(job.candidates)))
            if work.base_slot is not None and not job.tokens:
                self._with_candidates.append(work)
                return
        else:
            work.generator.seed(job.sampling.seed)
            work.seen.update(job.prompt)
        work.main = self._start_run(work, work.tokens)
        self._release_base(work)

    def start_candidate(self) -> bool:
        """Starts one candidate of the job whose turn it is; False when none may start."""
        self._with_candidates = [work for work in self._with_candidates if not work.finished]
        running = sum(run.candidate is not None for run in self._runs.values())
        if running >= self._places.for_candidates:
            return False
        may_run = [w for w in self._with_candidates if self.has_room_for(w.job.owner)]
        if not may_run:
            return False
        # The owner with the fewest places, and of its jobs the one that had its turn longest ago.
        work = min(may_run, key=lambda work: self._scheduler.running_of[work.job.owner])
        self._with_candidates.remove(work)
        with self._alone(work):
            assert isinstance(work.job, ScoreJob)
            index = work.waiting_candidates.popleft()
            self._start_run(work, work.job.candidates[index], candidate=index)
            if work.waiting_candidates:
                self._with_candidates.append(work)
        return True

    def _start_run(self, work: Work, tokens: Seq[int], *, candidate: int | None = None) -> Run:
        """A run over ``tokens`` in a row of its own, continuing the job's base."""
        row, base = self._rows.acquire(), work.base_slot
        assert row is not None, "there is a row for every sequence that may run"
        inputs = list(tokens) if base is not None else [self._eos_id, *tokens]
        targets = [*tokens[1:], None] if base is not None else [*tokens, None]
        if not work.needs_last_state(candidate):
            inputs, targets = inputs[:-1], targets[:-1]
        sequence = Sequence(
            slot=row,
            start=0,
            inputs=inputs,
            owner=work.job.owner,
            request=work.job.job_id,
            priority=work.job.priority,
            draws=isinstance(work.job, GenerateJob),
        )
        run = Run(work, sequence, targets[: len(inputs)], candidate=candidate)
        # Known before anything can break: ending the job then gives the row back.
        work.runs.append(run)
        self._runs[sequence] = run
        self._scheduler.add(sequence)
        if base is None:
            self._slab.reset(row)
        else:
            self._slab.load(base, row)
            sequence.start = self._slab.length(row)
            hidden, solved = self._slab.last(row)
            first = tokens[0] if tokens else None
            self._predictions.append(Prediction(run, hidden, solved, first))
        self._sharing.start(run)
        return run

    def step(self) -> None:
        """One call of f for all running jobs, and what follows from it."""
        for run in self._sharing.ready(time.monotonic() + self._call_s):
            if not run.work.finished:
                with self._alone(run.work):
                    self._take_over(run)
        entries = self._scheduler.enter()
        self._batch.enter(entries)
        if entries and self._batch.starts_warm:
            self.observer.started_warm(len(entries))
        if self._scheduler.active_rows:
            self._solve()
        predictions, self._predictions = self._predictions, []
        alive = [p for p in predictions if not p.run.work.finished]
        score(self._softmax, [p for p in alive if p.target is not None])
        drawing = [p for p in alive if p.target is None]
        for prediction, source in zip(drawing, sources(self._softmax, drawing), strict=True):
            with self._alone(prediction.run.work):
                self._draw(prediction, source)
        self._finish_runs()

    def _solve(self) -> None:
        begun = time.perf_counter()
        running = self._scheduler.active
        rows = self._scheduler.active_rows
        for work in {self._runs[s].work for s in running}:
            self._count_call(work)
        options = {s: self._solve_of(self._runs[s].work) for s in running}
        accepted = self._batch.step(self._scheduler, options)
        self._call_s = time.perf_counter() - begun
        self.observer.step(rows=rows, sequences=len(running), seconds=self._call_s)
        solved = [_as_asked(t.solved, self._runs[t.sequence].work.job.solve) for t in accepted]
        self.observer.solved(solved)
        for token, how in zip(accepted, solved, strict=True):
            self._take(token, how, options[token.sequence].tol)

    def _count_call(self, work: Work) -> None:
        """Notes that a job takes part in the call to be made, perhaps for the last time."""
        work.stats += SolveStats(nfe_total=1)
        work.closing = work.spent(time.monotonic() + self._call_s)
        if work.closing is not None and work.ending is None:
            work.ending = Ending(work.closing)

    def _solve_of(self, work: Work) -> Solve:
        """Solver options of a job in this call."""
        solve = work.job.solve
        if solve.policy == "error":
            return solve
        if self.loosen_to > solve.tol and not solve.keep_tol:
            solve = replace(solve, tol=self.loosen_to)
        # After its last call every token that is being solved is accepted at its best state.
        return solve if work.closing is None else replace(solve, max_nfe=1)

    def _take(self, token: Accepted, solved: Solved, tol: float) -> None:
        run = self._runs.get(token.sequence)
        if run is None:
            return  # its job failed on an earlier token of this call
        work = run.work
        work.count(solved, tol)
        run.last, target = solved, run.targets[token.index]
        if work.closing is not None and solved.status in ("max_nfe", "nonfinite"):
            # Of a state that predicts nothing and is not kept nobody will know.
            matters = target is not None or (run is work.main and work.job.lease is not None)
            run.early |= matters and solved.nfe < work.job.solve.max_nfe
        if solved.status != "converged" and work.job.solve.policy == "error":
            position = token.sequence.start + token.index
            self.fail(
                work,
                NotConverged(
                    f"token at position {position} has residual {solved.residual:.3g} after "
                    f"{solved.nfe} calls of f; tol is {work.job.solve.tol:g}, "
                    f"max_nfe {work.job.solve.max_nfe}"
                ),
            )
            return
        self._sharing.note(run, token.z_star, solved)
        self._predict(run, token.index, token.z_star, solved)

    def _take_over(self, run: Run) -> None:
        """Gives a run states that others have solved."""
        part = self._sharing.take(run)
        self.observer.shared(len(part.states))
        for index, (z_star, solved) in enumerate(
            zip(part.states, part.solved, strict=True), part.begin
        ):
            self._predict(run, index, z_star, solved)

    def _predict(self, run: Run, index: int, z_star: Tensor, solved: Solved) -> None:
        """Has the state of a token predict the next one, if that is known or to be drawn."""
        target, work = run.targets[index], run.work
        last = index == len(run.sequence.inputs) - 1
        drawing = last and work.ending is None and isinstance(work.job, GenerateJob)
        if target is not None or drawing:
            self._predictions.append(Prediction(run, z_star, solved, target))

    def _draw(self, prediction: Prediction, distribution: NextToken) -> None:
        run, work = prediction.run, prediction.run.work
        job = work.job
        assert isinstance(job, GenerateJob)
        self._announce_prompt(work, job, totals_of(run.tokens))
        stops = job.stop.stop_ids | ({job.stop.eos_id} if job.stop.eos_id is not None else set())
        early = len(work.drawn) < job.stop.min_tokens
        token_id = draw(
            distribution,
            job.sampling,
            seen=work.seen,
            forbidden=stops if early else (),
            generator=work.generator,
        )
        token = TokenLogprob(
            token_id,
            distribution.logprob(token_id),
            distribution.top(job.logprobs),
            prediction.solved,
        )
        work.drawn.append(token)
        work.seen.add(token_id)
        if work.first_token is None:
            work.first_token = time.monotonic()
        text, work.ending = self._text_and_ending(work, job, token_id, stops)
        job.sink(Drawn(token, text))
        if work.ending is None or job.lease is not None:
            run.sequence.inputs.append(token_id)
            run.targets.append(None)

    def _announce_prompt(self, work: Work, job: GenerateJob, totals: Totals) -> None:
        if not work.prompt_announced:
            work.prompt_announced = True
            job.sink(PromptSolved(totals))

    def _text_and_ending(
        self, work: Work, job: GenerateJob, token_id: int, stops: frozenset[int] | set[int]
    ) -> tuple[str, Ending | None]:
        if token_id in stops:
            is_eos = token_id == job.stop.eos_id and token_id not in job.stop.stop_ids
            return "", Ending("eos" if is_eos else "stop_id", stop_id=token_id)
        piece = job.text.feed(token_id)
        if piece.stop_string is not None:
            return piece.text, Ending("stop_string", stop_string=piece.stop_string)
        if len(work.drawn) >= job.stop.max_tokens:
            return piece.text, Ending("length")
        return piece.text, None

    def _finish_runs(self) -> None:
        closing = {run.work for run in self._runs.values() if run.work.closing is not None}
        for run in [run for run in self._runs.values() if run.sequence.done]:
            if not run.work.finished and not run.parked:
                with self._alone(run.work):
                    self._finish(run)
        for work in closing:
            if not work.finished:
                self._stop(work)

    def stop_late(self, work: Work, now: float) -> None:
        """Ends a job whose time is spent and for which no call of f is under way."""
        late = work.job.answer_by is not None and now >= work.job.answer_by
        if late and not work.finished and not work.is_solving:
            work.closing = "time"
            self._stop(work)

    def _stop(self, work: Work) -> None:
        """Answers a job whose budget is spent with what there is."""
        with self._alone(work):
            if isinstance(work.job, GenerateJob):
                ending = work.ending or Ending(work.closing or "time")
                self._finish_generate(work, work.job, ending)
            else:
                self._stop_score(work, work.job)

    def _stop_score(self, work: Work, job: ScoreJob) -> None:
        session = None
        if work.main is not None and work.main in work.runs:
            session = self._end_main(work, work.main, job)
        for run in list(work.runs):
            self._end_candidate(run, job)
        for index in range(len(job.candidates)):
            if index not in work.candidates:
                work.candidates[index] = ()
                work.cut.add(index)
        self._emit_scored(work, job, session or self._view(work))

    def _view(self, work: Work) -> SessionView | None:
        """The session of a job that changes nothing in it. Raises Cancelled: the lease is over."""
        if work.job.lease is None:
            return None
        session = self._sessions.view(work.job.lease)
        if session is None:
            raise Cancelled("the session was released")
        return session

    def _finish(self, run: Run) -> None:
        work = run.work
        if isinstance(work.job, GenerateJob):
            if work.ending is not None:
                self._finish_generate(work, work.job, work.ending)
        elif run.candidate is None:
            self._finish_main(run, work.job)
        else:
            self._finish_candidate(run, work.job)

    def _finish_main(self, run: Run, job: ScoreJob) -> None:
        work = run.work
        if job.candidates:
            work.base_slot = self._keep(run)
            self._drop_run(run)
            self._with_candidates.append(work)
            return
        session = self._end_main(work, run, job)
        self._emit_scored(work, job, session or self._view(work))

    def _end_main(self, work: Work, run: Run, job: ScoreJob) -> SessionView | None:
        """Ends the run of a job's own tokens; the session it was committed to, if it was."""
        session = None
        if job.lease is not None and not job.candidates:
            # The token after the last accepted one has a log-probability, but no state yet.
            del run.tokens[run.held :]
            session = self._commit(run, totals_of(run.tokens))
        self._drop_run(run)
        return session

    def _finish_candidate(self, run: Run, job: ScoreJob) -> None:
        work = run.work
        self._end_candidate(run, job)
        if len(work.candidates) == len(job.candidates):
            self._emit_scored(work, job, self._view(work))

    def _end_candidate(self, run: Run, job: ScoreJob) -> None:
        work, index = run.work, run.candidate
        assert index is not None
        work.candidates[index] = tuple(run.tokens)
        if run.is_cut(len(job.candidates[index])):
            work.cut.add(index)
        self._drop_run(run)

    def _emit_scored(self, work: Work, job: ScoreJob, session: SessionView | None) -> None:
        own = tuple(work.main.tokens) if work.main is not None else ()
        early = work.main is not None and work.main.early
        is_cut = bool(work.cut) or early or len(own) < len(job.tokens)
        self._end(work)
        job.sink(
            Scored(
                tokens=own,
                candidates=tuple(work.candidates[i] for i in range(len(job.candidates))),
                session=session,
                position=len(own) if session is None else session.position,
                stats=work.stats,
                times=work.times(time.monotonic()),
                stopped=work.closing if is_cut else None,
                cut=frozenset(work.cut),
            )
        )

    def _finish_generate(self, work: Work, job: GenerateJob, ending: Ending) -> None:
        run, session = work.main, None
        # The caller's code comes first: nothing is committed when it breaks.
        text = "" if ending.stop_string is not None else job.text.finish()
        if run is not None and job.lease is not None:
            del run.tokens[run.held :]
        read = [] if run is None else run.tokens
        self._announce_prompt(work, job, totals_of(read))
        if run is not None:
            if job.lease is not None:
                drawn = work.drawn[: run.held - len(read)]
                session = self._commit(run, totals_of(read) + totals_of(drawn))
            self._drop_run(run)
        session = session or self._view(work)
        self._end(work)
        first = work.first_token
        job.sink(
            Generated(
                reason=ending.reason,
                text=text,
                stop_string=ending.stop_string,
                stop_id=ending.stop_id,
                totals=totals_of(work.drawn),
                session=session,
                position=len(read) + len(work.drawn) if session is None else session.position,
                stats=work.stats,
                times=work.times(time.monotonic()),
                time_to_first_token_s=None if first is None else first - work.submitted,
            )
        )

    def _commit(self, run: Run, totals: Totals) -> SessionView | None:
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
        slot = self._keep(run)
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

    def _keep(self, run: Run) -> int:
        """A slot, held by the caller, with what the run's row has come to."""
        slot = self._slots.acquire()
        assert slot is not None, "there is a slot for every session and every running job"
        try:
            self._slab.save(run.sequence.slot, slot)
        except Exception:
            self._slots.release(slot)  # the job fails, and nobody would know of the slot
            raise
        return slot

    def fail(self, work: Work, error: EngineError) -> None:
        """Ends a job without a trace in its session."""
        if work.finished:
            return
        for run in list(work.runs):
            self._drop_run(run)
        self._end(work)
        try:
            work.job.sink(Failed(error))
        except Exception:
            # The caller's code: there is nobody else to tell, and other jobs to end.
            log.exception("job %s cannot be told that it failed: %s", work.job.job_id, error)

    def _drop_run(self, run: Run) -> None:
        del self._runs[run.sequence]
        run.work.runs.remove(run)
        self._sharing.end(run)
        self._scheduler.remove(run.sequence)
        self._rows.release(run.sequence.slot)

    def _end(self, work: Work) -> None:
        work.finished = True
        self._sharing.forget(work)
        self._release_base(work)

    def _release_base(self, work: Work) -> None:
        if work.base_slot is not None:
            self._slots.release(work.base_slot)
            work.base_slot = None


def _as_asked(solved: Solved, solve: Solve) -> Solved:
    """How a token was solved, judged by the tolerance that its job asked for."""
    if solved.status == "converged" and solved.residual > solve.tol:
        return replace(solved, status="loosened")
    return solved
