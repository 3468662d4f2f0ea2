"""How jobs end: with all they asked for, with what there is, or with an error."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from server.engine.drawing import announce_prompt
from server.engine.errors import EngineError, EngineFailed, OutOfMemory
from server.engine.memory import Memory, is_out_of_memory
from server.engine.requests import GenerateJob, ScoreJob
from server.engine.results import Failed, Generated, Scored, Totals
from server.engine.runs import Runs
from server.engine.sharing import Sharing
from server.engine.work import Ending, Run, Work, totals_of

log = logging.getLogger(__name__)


class Answers:
    """Gives every job its one terminal event, and back what the job held."""

    def __init__(self, runs: Runs, memory: Memory, sharing: Sharing) -> None:
        """Takes the parts that are told of an end."""
        self._runs, self._memory, self._sharing = runs, memory, sharing

    @contextmanager
    def alone(self, work: Work) -> Iterator[None]:
        """What breaks inside ends this job and no other."""
        try:
            yield
        except EngineError as error:
            self.fail(work, error)
        except Exception as error:
            # Sinks and text sinks are the caller's code, run on this thread: whatever they raise
            # must not end the jobs of others.
            log.exception("job %s failed", work.job.job_id, extra=_about(work))
            self.break_off([work], error)

    def break_off(self, works: Iterable[Work], error: Exception) -> None:
        """Ends jobs that a defect has hit; where memory ran out, what is kept makes room."""
        is_full = is_out_of_memory(error)
        for work in works:
            self.fail(work, OutOfMemory() if is_full else EngineFailed("internal error"))
        if is_full:
            self.make_room()

    def make_room(self) -> None:
        """Drops what is kept to spare work: somebody needs the memory."""
        self._sharing.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def finish(self, run: Run) -> None:
        """Takes in a run that is done, and answers its job if that was the last."""
        work = run.work
        if isinstance(work.job, GenerateJob):
            if work.ending is not None:
                self._finish_generate(work, work.job, work.ending)
        elif run.candidate is None:
            self._finish_score(work, work.job)
        else:
            self._end_candidate(run, work.job)
            if len(work.candidates) == len(work.job.candidates):
                self._finish_score(work, work.job)

    def stop(self, work: Work) -> None:
        """Answers a job whose budget is spent with what there is."""
        with self.alone(work):
            if isinstance(work.job, GenerateJob):
                ending = work.ending or Ending(work.closing or "time")
                self._finish_generate(work, work.job, ending)
            else:
                self._stop_score(work, work.job)

    def fail(self, work: Work, error: EngineError) -> None:
        """Ends a job without a trace in its session."""
        if work.finished:
            return
        for run in list(work.runs):
            self._runs.drop(run)
        work.error = error
        self._end(work)
        try:
            work.job.sink(Failed(error, work.stats.solved_tokens))
        except Exception:
            # The caller's code: there is nobody else to tell, and other jobs to end.
            log.exception(
                "job %s cannot be told that it failed: %s",
                work.job.job_id,
                error,
                extra=_about(work),
            )

    def _stop_score(self, work: Work, job: ScoreJob) -> None:
        for run in [run for run in work.runs if run is not work.main]:
            self._end_candidate(run, job)
        for index in range(len(job.candidates)):
            if index not in work.candidates:
                work.candidates[index] = ()
                work.cut.add(index)
        self._finish_score(work, job)

    def _end_candidate(self, run: Run, job: ScoreJob) -> None:
        work, index = run.work, run.candidate
        assert index is not None
        work.candidates[index] = tuple(run.tokens)
        if run.is_cut(len(job.candidates[index])):
            work.cut.add(index)
        self._runs.drop(run)

    def _finish_score(self, work: Work, job: ScoreJob) -> None:
        run = work.main
        commits = run is not None and job.lease is not None and not job.candidates
        if run is not None and commits:
            # The token after the last accepted one has a log-probability, but no state yet.
            del run.tokens[run.held :]
        own = () if run is None else tuple(run.tokens)
        early = run is not None and run.early
        is_cut = bool(work.cut) or early or len(own) < len(job.tokens)
        answer = Scored(
            tokens=own,
            candidates=tuple(work.candidates[i] for i in range(len(job.candidates))),
            session=None,
            position=len(own),
            stats=work.stats,
            times=work.times(time.monotonic()),
            stopped=work.closing if is_cut else None,
            cut=frozenset(work.cut),
        )
        self._answer(work, answer, totals_of(run.tokens) if run is not None and commits else None)

    def _finish_generate(self, work: Work, job: GenerateJob, ending: Ending) -> None:
        run = work.main
        # The caller's code comes first: nothing is committed when it breaks.
        text = "" if ending.stop_string is not None else job.text.finish()
        if run is not None and job.lease is not None:
            del run.tokens[run.held :]
        read = [] if run is None else run.tokens
        announce_prompt(work, job, totals_of(read))
        kept = None
        if run is not None and job.lease is not None:
            kept = totals_of(read) + totals_of(work.drawn[: run.held - len(read)])
        first = work.first_token
        answer = Generated(
            reason=ending.reason,
            text=text,
            stop_string=ending.stop_string,
            stop_id=ending.stop_id,
            totals=totals_of(work.drawn),
            session=None,
            position=len(read) + len(work.drawn),
            stats=work.stats,
            times=work.times(time.monotonic()),
            time_to_first_token_s=None if first is None else first - work.submitted,
        )
        self._answer(work, answer, kept)

    def _answer(self, work: Work, answer: Scored | Generated, totals: Totals | None) -> None:
        """Commits, and answers. The answer is made before, so that both are done or neither is.

        Args:
            work: the job.
            answer: as it is without a session.
            totals: over the tokens that its own run commits; None where it commits nothing.
        """
        session = None
        if work.main is not None and totals is not None:
            session = self._memory.commit(work.main, totals)
        session = session or self._memory.view(work)
        if session is not None:
            answer = replace(answer, session=session, position=session.position)
        try:
            for run in list(work.runs):
                self._runs.drop(run)
            self._end(work)
        except Exception:
            # What is committed is committed: the caller has to hear of that all the same.
            log.exception("job %s did not end well", work.job.job_id, extra=_about(work))
            work.finished = True
        work.job.sink(answer)

    def _end(self, work: Work) -> None:
        work.end()
        self._sharing.forget(work)
        self._memory.release_base(work)


def _about(work: Work) -> dict[str, str]:
    return {"request_id": work.job.request_id}
