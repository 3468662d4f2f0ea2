"""From jobs to calls of f and back: what each accepted token means to its job."""

import time
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import replace

from deq_model.adaptive_softmax import ClusteredLogSoftmax
from server.engine.admission import Places
from server.engine.answers import Answers
from server.engine.batch import Accepted, Batch
from server.engine.blame import Blame
from server.engine.drawing import draw_next
from server.engine.errors import EngineError, NotConverged
from server.engine.guessing import Guesses
from server.engine.memory import Memory
from server.engine.observer import Observer, Unobserved
from server.engine.predictions import Prediction, score, sources
from server.engine.requests import ScoreJob
from server.engine.runs import Runs
from server.engine.scheduler import Scheduler
from server.engine.shared_calls import SharedCalls
from server.engine.sharing import Sharing
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.solve import Solve, Solved, SolveStats
from server.engine.work import Ending, Run, Work


class JobRunner:
    """Works on jobs, one call of f at a time. Lives on the engine's thread."""

    def __init__(
        self,
        *,
        softmax: ClusteredLogSoftmax,
        batch: Batch,
        slab: Slab,
        rows: SlotPool,
        scheduler: Scheduler,
        memory: Memory,
        eos_id: int,
        prefix_cache: int = 0,
        guess_ahead: int = 0,
    ) -> None:
        """Takes the engine's parts; ``rows`` are those of the slab's work area."""
        self.observer: Observer = Unobserved()
        self.loosen_to = 0.0
        """Tolerance to which tokens may be loosened now; 0 for none."""
        self._softmax, self._batch, self._scheduler = softmax, batch, scheduler
        self._sharing = Sharing(batch, slab, max_tokens=prefix_cache)
        self._memory = memory
        self._runs = Runs(
            slab=slab, rows=rows, scheduler=scheduler, sharing=self._sharing, eos_id=eos_id
        )
        self._guesses = Guesses(batch, scheduler, most=guess_ahead)
        self._answers = Answers(self._runs, self._memory, self._sharing)
        self._blame = Blame(self._answers)
        self._calls = SharedCalls(batch, scheduler, self._runs, self._blame)
        self._with_candidates: list[Work] = []
        self._places = Places(scheduler.max_running)
        self._call_s = 0.0
        self.solved_tokens = 0
        """Tokens accepted since the start."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens of ended prompts whose states are kept."""
        return self._sharing.kept_tokens

    @property
    def parked(self) -> int:
        """Runs that wait for what others solve, or take it over."""
        return self._sharing.parked

    @property
    def repeated(self) -> int:
        """How often something that jobs share was done again for some of them."""
        return self._blame.repeated

    def problems(self) -> list[str]:
        """Where runs and what they hold do not add up."""
        return self._runs.problems()

    @property
    def has_room(self) -> bool:
        """Whether another sequence may run."""
        return self._scheduler.has_room

    def has_room_for(self, owner: str) -> bool:
        """Whether another sequence of an owner may run."""
        return self._places.open_to(owner, self._scheduler.running_of)

    def begin(self, work: Work) -> None:
        """Gives a job its memory and its first rows."""
        work.start(time.monotonic())
        with self._answers.alone(work):
            self._begin(work)

    def _begin(self, work: Work) -> None:
        job = work.job
        self._memory.take_base(work)
        if isinstance(job, ScoreJob):
            work.waiting_candidates.extend(range(len(job.candidates)))
            if work.base_slot is not None and not job.tokens:
                self._with_candidates.append(work)
                return
        else:
            work.generator.seed(job.sampling.seed)
            work.seen.update(job.prompt)
        work.main = self._start(work, work.tokens)
        self._memory.release_base(work)

    def _start(self, work: Work, tokens: Seq[int], *, candidate: int | None = None) -> Run:
        run = self._runs.start(work, tokens, candidate=candidate)
        if run.trace is not None:
            self.observer.looked_up(len(run.trace.tokens))
        return run

    def start_candidate(self) -> bool:
        """Starts one candidate of the job whose turn it is; False when none may start."""
        self._with_candidates = [work for work in self._with_candidates if not work.finished]
        running = sum(run.candidate is not None for run in self._runs)
        if running >= self._places.for_candidates:
            return False
        may_run = [w for w in self._with_candidates if self.has_room_for(w.job.owner)]
        if not may_run:
            return False
        # The owner with the fewest places, and of its jobs the one that had its turn longest ago.
        work = min(may_run, key=lambda work: self._scheduler.running_of[work.job.owner])
        self._with_candidates.remove(work)
        with self._answers.alone(work):
            assert isinstance(work.job, ScoreJob)
            index = work.waiting_candidates.popleft()
            self._start(work, work.job.candidates[index], candidate=index)
            if work.waiting_candidates:
                self._with_candidates.append(work)
        return True

    def step(self) -> None:
        """One call of f for all running jobs, and what follows from it."""
        for run in self._sharing.ready(time.monotonic() + self._call_s):
            if not run.work.finished:
                with self._answers.alone(run.work):
                    self._take_over(run)
        entries = self._scheduler.enter()
        self._calls.enter(entries)
        if entries and self._batch.starts_warm:
            self.observer.started_warm(len(entries))
        if self._scheduler.active_rows:
            self._solve()
        self._score_and_draw()
        self._finish_runs()

    def _take_over(self, run: Run) -> None:
        """Gives a run states that others have solved."""
        part = self._sharing.take(run)
        self.observer.shared(len(part.states))
        for index, (z_star, solved) in enumerate(
            zip(part.states, part.solved, strict=True), part.begin
        ):
            self._runs.predict(run, index, z_star, solved)

    def _solve(self) -> None:
        begun = time.perf_counter()
        rows = self._scheduler.active_rows
        running = {sequence: self._runs[sequence] for sequence in self._scheduler.active}
        for work in {run.work for run in running.values()}:
            self._count_call(work)
        options = {sequence: self._solve_of(run.work) for sequence, run in running.items()}
        widths = [sequence.granted for sequence in running]
        accepted = self._calls.solve(options)
        self._call_s = time.perf_counter() - begun
        self.solved_tokens += len(accepted)
        solved = [_as_asked(t.solved, running[t.sequence].work.job.solve) for t in accepted]
        for token, how in zip(accepted, solved, strict=True):
            with self._answers.alone(running[token.sequence].work):
                self._take(token, how, options[token.sequence].tol)
        self.observer.step(rows=rows, sequences=len(running), seconds=self._call_s)
        self.observer.windows(widths)
        self.observer.began(self._batch.first_residuals)
        self.observer.solved(solved)

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
        is_new = run.again == 0 or token.index > run.again
        if solved.status != "converged" and work.job.solve.policy == "error" and is_new:
            self.fail(work, _not_converged(token, solved, work.job.solve))
            return
        self._sharing.note(run, token.z_star, solved)
        self._runs.predict(run, token.index, token.z_star, solved)

    def _score_and_draw(self) -> None:
        predictions = self._runs.take_predictions()
        known = [p for p in predictions if p.target is not None]
        drawing = [p for p in predictions if p.target is None]

        def score_some(works: Collection[Work]) -> None:
            score(self._softmax, [p for p in known if p.run.work in works])

        def draw_some(works: Collection[Work]) -> None:
            self._draw([p for p in drawing if p.run.work in works], works)

        self._blame.share((p.run.work for p in known), score_some)
        self._blame.share((run.work for run in self._runs), draw_some)
        self.observer.guessed(**self._guesses.take_counts())

    def _draw(self, drawing: Seq[Prediction], works: Collection[Work]) -> None:
        """Draws the next tokens of jobs, and guesses others; it raises before it does anything."""
        runs = [run for run in self._runs if run.work in works]
        guessing = self._guesses.wanted(runs, {p.run for p in drawing})
        states = [p.hidden for p in drawing] + [guess.hidden for guess in guessing]
        found = sources(self._softmax, states)
        for prediction, source in zip(drawing, found, strict=False):
            with self._answers.alone(prediction.run.work):
                self._guesses.settle(prediction.run, draw_next(prediction, source))
        for guess, source in zip(guessing, found[len(drawing) :], strict=True):
            with self._answers.alone(guess.run.work):
                self._guesses.make(guess, source)

    def _finish_runs(self) -> None:
        closing = {run.work for run in self._runs if run.work.closing is not None}
        for run in [run for run in self._runs if run.sequence.done]:
            if not run.work.finished and not run.parked:
                with self._answers.alone(run.work):
                    self._finish(run)
        for work in closing:
            if not work.finished:
                self._answers.stop(work)

    def _finish(self, run: Run) -> None:
        work = run.work
        if isinstance(work.job, ScoreJob) and work.job.candidates and run.candidate is None:
            work.base_slot = self._memory.keep(run)
            if not work.job.tokens:  # it is what the session holds, solved again
                self._memory.settle(work)
            self._runs.drop(run)
            self._with_candidates.append(work)
        else:
            self._answers.finish(run)

    def stop_late(self, work: Work, now: float) -> None:
        """Ends a job whose time is spent and for which no call of f is under way."""
        late = work.job.answer_by is not None and now >= work.job.answer_by
        if late and not work.finished and not work.is_solving:
            work.closing = "time"
            self._answers.stop(work)

    def fail_all(self, works: list[Work], error: Exception) -> None:
        """Ends jobs whose call of f has failed."""
        self._answers.break_off(works, error)

    def fail(self, work: Work, error: EngineError) -> None:
        """Ends a job without a trace in its session."""
        self._answers.fail(work, error)


def _as_asked(solved: Solved, solve: Solve) -> Solved:
    """How a token was solved, judged by the tolerance that its job asked for."""
    if solved.status == "converged" and solved.residual > solve.tol:
        return replace(solved, status="loosened")
    return solved


def _not_converged(token: Accepted, solved: Solved, solve: Solve) -> NotConverged:
    position = token.sequence.start + token.index
    return NotConverged(
        f"token at position {position} has residual {solved.residual:.3g} after "
        f"{solved.nfe} calls of f; tol is {solve.tol:g}, max_nfe {solve.max_nfe}"
    )
