"""A session as an object, for the synchronous client."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from client import resources, results
from client._resume import check_resumable
from client._sync_streams import Generation
from client.errors import DeqlmError, NotFound
from client.options import (
    Budget,
    Input,
    Priority,
    SamplingOptions,
    SolverOptions,
    StopOptions,
    StreamPiece,
)

if TYPE_CHECKING:
    from client.sync import Client


class Session:
    """A session on the server, with the calls that use it.

    As a context manager it is deleted at the end.
    """

    def __init__(self, client: Client, info: resources.SessionInfo) -> None:
        """Wrap a session the server has made; `info` is its state at that time."""
        self._client = client
        self.info = info

    @property
    def session_id(self) -> str:
        """Its id."""
        return self.info.session_id

    def __enter__(self) -> Self:
        """Use as a context manager; leaving it deletes the session."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the session; that it is gone already is no error, and none hides the body's."""
        try:
            self._client.delete_session(self.session_id, wait_if_busy=True)
        except NotFound:
            pass
        except DeqlmError:
            if exc is None:
                raise

    def score(
        self,
        input: Input | None = None,
        *,
        top_k: int | None = None,
        solver: SolverOptions | None = None,
        include_tokens: bool = True,
        candidates: Sequence[Input] = (),
        budget: Budget | None = None,
        priority: Priority | None = None,
        idempotency_key: str = "",
        timeout_s: float | None = None,
    ) -> results.Score:
        """Score after what the session holds and append; with candidates, append nothing."""
        return self._client.score(
            input,
            session=self.session_id,
            top_k=top_k,
            solver=solver,
            include_tokens=include_tokens,
            candidates=candidates,
            budget=budget,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )

    def score_stream(
        self,
        pieces: Iterable[StreamPiece],
        *,
        top_k: int | None = None,
        solver: SolverOptions | None = None,
        include_tokens: bool = True,
        budget: Budget | None = None,
        priority: Priority | None = None,
        timeout_s: float | None = None,
        resume: bool = False,
    ) -> Generator[results.StreamedScore, None, None]:
        """Score text as it comes and append it.

        With `resume` it goes on where the session is when the connection is lost: nothing is
        appended twice. Figures and offsets of `call` and tokens then count from there, those of
        `session` from its begin; answers that were lost on their way do not come again.

        Raises:
            InvalidArgument: `resume` and a budget, or `resume` with text and token ids mixed.
        """

        def begin(
            pieces: Iterable[StreamPiece],
        ) -> Generator[results.StreamedScore, None, None]:
            return self._client.score_stream(
                pieces,
                session=self.session_id,
                top_k=top_k,
                solver=solver,
                include_tokens=include_tokens,
                budget=budget,
                priority=priority,
                timeout_s=timeout_s,
            )

        if not resume:
            return begin(pieces)
        check_resumable(budget)
        return self._client.resumed(self.session_id, pieces, begin)

    def generate(
        self,
        prompt: Input | None = None,
        *,
        sampling: SamplingOptions | None = None,
        stop: StopOptions | None = None,
        logprobs: int | None = None,
        solver: SolverOptions | None = None,
        budget: Budget | None = None,
        priority: Priority | None = None,
        idempotency_key: str = "",
        timeout_s: float | None = None,
    ) -> Generation:
        """Continue the session; prompt and tokens are appended when generation finishes."""
        return self._client.generate(
            prompt,
            session=self.session_id,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            solver=solver,
            budget=budget,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )

    def fork(self, *, ttl_s: float | None = None) -> Session:
        """Copy the session."""
        return Session(self._client, self._client.fork_session(self.session_id, ttl_s=ttl_s))

    def export(self) -> bytes:
        """Give the session out as bytes, for `import_session` of a client."""
        return self._client.export_session(self.session_id)

    def refresh(self) -> resources.SessionInfo:
        """Ask for its state; also kept in `info`."""
        self.info = self._client.get_session(self.session_id)
        return self.info

    def delete(self) -> None:
        """Delete it."""
        self._client.delete_session(self.session_id)
