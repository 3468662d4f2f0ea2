"""What the edge needs of an engine: the shape that ``server.engine`` has."""

from typing import Protocol

import torch

from deq_model.config import ModelConfig
from deq_model.tokenizers.base import Tokenizer
from server.engine.types import EngineSnapshot, GenerateJob, Lease, ScoreJob, SessionView, Solve


class SessionsPort(Protocol):
    """Sessions of one engine; safe to call from any thread, and never waits for the device."""

    def create(self, *, owner: str, ttl_s: float, solve: Solve) -> SessionView:
        """Make an empty session. Raises SessionLimit."""

    def get(self, session_id: str, owner: str) -> SessionView:
        """Tell about a session. Raises SessionNotFound."""

    def list(self, owner: str) -> list[SessionView]:
        """The owner's sessions."""

    def fork(self, session_id: str, owner: str, *, ttl_s: float | None) -> SessionView:
        """Copy a session. Raises SessionNotFound, SessionBusy, SessionLimit."""

    def delete(self, session_id: str, owner: str) -> None:
        """Forget a session. Raises SessionNotFound, SessionBusy."""

    def acquire(self, session_id: str, owner: str) -> Lease:
        """Take a session for one call. Raises SessionNotFound, SessionBusy."""

    def release(self, lease: Lease) -> None:
        """Give a session back; a job that still runs on the lease commits nothing any more."""


class EnginePort(Protocol):
    """An engine: one loaded model, and the thread that works on it."""

    @property
    def name(self) -> str:
        """Name in requests."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""

    @property
    def fingerprint(self) -> str:
        """Tells its weights from others."""

    @property
    def n_parameters(self) -> int:
        """Parameters, each counted once."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its weights."""

    @property
    def sessions(self) -> SessionsPort:
        """Its sessions."""

    @property
    def ready(self) -> bool:
        """Whether it takes work."""

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""

    def start(self) -> None:
        """Start its thread, and return when it is warm."""

    def submit(self, job: ScoreJob | GenerateJob) -> None:
        """Queue a job. Raises QueueFull, EngineStopped, SessionNotFound, InvalidRequest."""

    def cancel(self, job_id: str) -> None:
        """End a job early; it does not matter whether there is one."""

    def snapshot(self) -> EngineSnapshot:
        """Gauges."""

    def stop(self, *, grace_s: float) -> None:
        """Take no more work, give running jobs ``grace_s`` to end, and return when all is over."""
