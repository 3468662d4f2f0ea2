"""Drives a real engine: sessions, jobs and the times of their events."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event as Flag
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.engine_settings import Setting
from deq_model.checkpoint import LoadedCheckpoint
from deq_model.warm_start import WarmStart
from server.config import ServerConfig
from server.engine.engine import Engine
from server.engine.limits import EngineLimits
from server.engine.observer import Unobserved
from server.engine.requests import GenerateJob, Piece, Sampling, ScoreJob, Stop
from server.engine.results import TERMINAL, Drawn, Event, Failed, Generated, Scored
from server.engine.solve import Solve
from server.loading import pick_early, pick_threads

OWNER = "benchmark"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of f: rows, sequences, seconds it took, and when it ended."""

    rows: int
    sequences: int
    seconds: float
    ended: float


class Calls(Unobserved):
    """An observer that keeps the calls of f, in order; tokens come with their events."""

    def __init__(self) -> None:
        self.made: list[Call] = []

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        """Keeps a call."""
        self.made.append(Call(rows, sequences, seconds, time.perf_counter()))


def calls_per_token(calls: Calls, jobs: Sequence["Pending"]) -> float:
    """Calls of f from a job's first drawn token to its last, by tokens drawn after the first.

    A token may be solved in more calls than that: its solve begins before the one before it ends.
    """
    ended = [call.ended for call in calls.made]
    made = [sum(job.drawn_at[0] < end <= job.drawn_at[-1] for end in ended) for job in jobs]
    return sum(made) / sum(len(job.drawn_at) - 1 for job in jobs)


class Silent:
    """Makes no text of tokens."""

    def feed(self, token_id: int) -> Piece:
        """Nothing."""
        return Piece("")

    def finish(self) -> str:
        """Nothing."""
        return ""


class Pending:
    """The events of one job, with the instants at which the engine gave them."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.submitted = job_id, time.perf_counter()
        self.events: list[tuple[float, Event]] = []
        self._over = Flag()
        self._drew = Flag()

    def take(self, event: Event) -> None:
        """The job's sink."""
        self.events.append((time.perf_counter(), event))
        if isinstance(event, Drawn):
            self._drew.set()
        if isinstance(event, TERMINAL):
            self._drew.set()
            self._over.set()

    def wait_drawn(self) -> None:
        """Until a first token is drawn."""
        self._drew.wait()

    def wait(self) -> Scored | Generated:
        """The last event.

        Raises:
            EngineError: the job failed.
        """
        self._over.wait()
        event = self.events[-1][1]
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Scored | Generated)
        return event

    def wait_over(self) -> None:
        """Until it has ended, in whatever way."""
        self._over.wait()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    @property
    def drawn(self) -> list[Drawn]:
        """The tokens drawn."""
        return [event for _, event in self.events if isinstance(event, Drawn)]

    @property
    def drawn_at(self) -> list[float]:
        """When they were drawn."""
        return [at for at, event in self.events if isinstance(event, Drawn)]


class Driver:
    """An engine and the sessions on it; a context manager."""

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        setting: Setting,
        *,
        device: torch.device,
        warm_start: WarmStart | None = None,
        **limits: Any,
    ) -> None:
        """Starts the engine, which takes the checkpoint over.

        Args:
            checkpoint: freshly loaded.
            setting: how to run it.
            device: where.
            warm_start: used if the setting wants one.
            limits: fields of ``EngineLimits``, before the setting's.
        """
        self.setting, self.calls = setting, Calls()
        self.solve = Solve(tol=setting.tol, max_nfe=setting.max_nfe)
        self.limits = replace(EngineLimits(), **{**limits, **setting.limits})
        early = ServerConfig(early_dtype=setting.early)
        self.engine = Engine(
            checkpoint,
            name=setting.name,
            device=device,
            dtype=setting.dtype,
            limits=self.limits,
            observer=self.calls,
            warm_start=warm_start if setting.warm else None,
            early_int8=pick_early(early, device, setting.dtype, checkpoint.config),
            threads=pick_threads(early, checkpoint.config),
        )
        self._serial = 0
        if setting.by_cost:
            self.engine.measure_calls()
        self.engine.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.stop(grace_s=0)

    def session(self, tokens: Sequence[int] = ()) -> str:
        """A new session that holds ``<eos>`` and the tokens."""
        view = self.engine.sessions.create(owner=OWNER, ttl_s=1e6, solve=self.solve)
        if tokens:
            self.score(tokens, session=view.session_id).wait()
        return view.session_id

    def sessions(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """A session for each text, all solved together."""
        made = [self.session() for _ in texts]
        jobs = [self.score(text, session=s) for text, s in zip(texts, made, strict=True)]
        for job in jobs:
            job.wait()
        return made

    def fork(self, session: str) -> str:
        """A copy that shares the memory until it goes on."""
        return self.engine.sessions.fork(session, OWNER).session_id

    def delete(self, sessions: Sequence[str]) -> None:
        """Forgets sessions."""
        for session in sessions:
            self.engine.sessions.delete(session, OWNER)

    def score(
        self,
        tokens: Sequence[int],
        *,
        session: str | None = None,
        max_calls: int | None = None,
        owner: str = OWNER,
    ) -> Pending:
        """Submits a request to score, answered after ``max_calls`` calls of f at the latest."""
        pending = self._pending()
        lease = None if session is None else self.engine.sessions.acquire(session, OWNER)
        self.engine.submit(
            ScoreJob(
                job_id=pending.job_id,
                tokens=tuple(tokens),
                sink=self._sink(pending, session, lease),
                lease=lease,
                solve=self.solve,
                max_calls=max_calls,
                owner=owner,
            )
        )
        return pending

    def generate(
        self, count: int, *, seed: int, session: str | None = None, prompt: Sequence[int] = ()
    ) -> Pending:
        """Submits a request to draw ``count`` tokens at temperature 1."""
        pending = self._pending()
        lease = None if session is None else self.engine.sessions.acquire(session, OWNER)
        self.engine.submit(
            GenerateJob(
                job_id=pending.job_id,
                prompt=tuple(prompt),
                text=Silent(),
                stop=Stop(max_tokens=count),
                sink=self._sink(pending, session, lease),
                sampling=Sampling(seed=seed),
                owner=OWNER,
                lease=lease,
                solve=self.solve,
            )
        )
        return pending

    def cancel(self, pending: Pending) -> None:
        """Ends a job and waits for its end."""
        self.engine.cancel(pending.job_id)
        pending.wait_over()

    def _pending(self) -> Pending:
        self._serial += 1
        return Pending(str(self._serial))

    def _sink(self, pending: Pending, session: str | None, lease: Any) -> Any:
        if lease is None:
            return pending.take

        def take(event: Event) -> None:
            # Before the waiting thread is told, so that it finds the session free.
            if isinstance(event, TERMINAL):
                self.engine.sessions.release(lease)
            pending.take(event)

        return take
