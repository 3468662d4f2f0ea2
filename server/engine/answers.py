"""How jobs end: with all they asked for, with what there is, or with an error."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from server.engine.drawing import announce_prompt
from server.engine.errors import EngineError, EngineFailed, OutOfMemory
from server.engine.memory import Memory, is_out_of_memory
from server.engine.requests import GenerateJob, ScoreJob
from server.engine.results import Failed, Generated, Scored, SessionView
from server.engine.runs import Runs
from server.engine.sharing import Sharing
from server.engine.work import Ending, Run, Work, totals_of

log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""When others may be done that memory was short with."""


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
            self.fail(work, _no_memory() if is_full else EngineFailed("internal error"))
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
            session = self._end_main(work, run, work.job)
            self._emit_scored(work, work.job, session or self._memory.view(work))
        else:
            self._end_candidate(run, work.job)
            if len(work.candidates) == len(work.job.candidates):
                self._emit_scored(work, work.job, self._memory.view(work))

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
            work.job.sink(Failed(error))
        except Exception:
            # The caller's code: there is nobody else to tell, and other jobs to end.
            log.exception(
                "job %s cannot be told that it failed: %s",
                work.job.job_id,
                error,
                extra=_about(work),
            )

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
        self._emit_scored(work, job, session or self._memory.view(work))

    def _end_main(self, work: Work, run: Run, job: ScoreJob) -> SessionView | None:
        """Ends the run of a job's own tokens; the session it was committed to, if it was."""
        session = None
        if job.lease is not None and not job.candidates:
            # The token after the last accepted one has a log-probability, but no state yet.
            del run.tokens[run.held :]
            session = self._memory.commit(run, totals_of(run.tokens))
        self._runs.drop(run)
        return session

    def _end_candidate(self, run: Run, job: ScoreJob) -> None:
        work, index = run.work, run.candidate
        assert index is not None
        work.candidates[index] = tuple(run.tokens)
        if run.is_cut(len(job.candidates[index])):
            work.cut.add(index)
        self._runs.drop(run)

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
        announce_prompt(work, job, totals_of(read))
        if run is not None:
            if job.lease is not None:
                drawn = work.drawn[: run.held - len(read)]
                session = self._memory.commit(run, totals_of(read) + totals_of(drawn))
            self._runs.drop(run)
        session = session or self._memory.view(work)
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

    def _end(self, work: Work) -> None:
        work.end()
        self._sharing.forget(work)
        self._memory.release_base(work)


def _about(work: Work) -> dict[str, str]:
    return {"request_id": work.job.request_id}


def _no_memory() -> OutOfMemory:
    return OutOfMemory(
        "there was no memory for this; try again when others are done", retry_after_s=_RETRY_S
    )
