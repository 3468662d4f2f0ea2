"""A session as an object, for the asyncio client."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Coroutine,
    Generator,
    Iterable,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from client import resources, results
from client._aio_streams import AsyncGeneration
from client._resume import check_resumable
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
    from client.aio import AsyncClient


class AsyncSession:
    """A session on the server, with the calls that use it.

    As a context manager it is deleted at the end.
    """

    def __init__(self, client: AsyncClient, info: resources.SessionInfo) -> None:
        """Wrap a session the server has made; `info` is its state at that time."""
        self._client = client
        self.info = info

    @property
    def session_id(self) -> str:
        """Its id."""
        return self.info.session_id

    async def __aenter__(self) -> Self:
        """Use as a context manager; leaving it deletes the session."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the session; that it is gone already is no error, and none hides the body's."""
        try:
            await self._client.delete_session(self.session_id, wait_if_busy=True)
        except NotFound:
            pass
        except DeqlmError:
            if exc is None:
                raise

    async def score(
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
        return await self._client.score(
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
        pieces: Iterable[StreamPiece] | AsyncIterable[StreamPiece],
        *,
        top_k: int | None = None,
        solver: SolverOptions | None = None,
        include_tokens: bool = True,
        budget: Budget | None = None,
        priority: Priority | None = None,
        timeout_s: float | None = None,
        resume: bool = False,
    ) -> AsyncGenerator[results.StreamedScore, None]:
        """Score text as it comes and append it.

        With `resume` it goes on where the session is when the connection is lost: nothing is
        appended twice. Figures and offsets of `call` and tokens then count from there, those of
        `session` from its begin; answers that were lost on their way do not come again.

        Raises:
            InvalidArgument: `resume` and a budget, or `resume` with text and token ids mixed.
        """

        def begin(
            pieces: Iterable[StreamPiece] | AsyncIterable[StreamPiece],
        ) -> AsyncGenerator[results.StreamedScore, None]:
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
    ) -> AsyncGeneration:
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

    async def fork(self, *, ttl_s: float | None = None) -> AsyncSession:
        """Copy the session."""
        return AsyncSession(
            self._client, await self._client.fork_session(self.session_id, ttl_s=ttl_s)
        )

    async def export(self) -> bytes:
        """Give the session out as bytes, for `import_session` of a client."""
        return await self._client.export_session(self.session_id)

    async def refresh(self) -> resources.SessionInfo:
        """Ask for its state; also kept in `info`."""
        self.info = await self._client.get_session(self.session_id)
        return self.info

    async def delete(self) -> None:
        """Delete it."""
        await self._client.delete_session(self.session_id)


class SessionOpening:
    """A session that is being made: await it, or enter it with `async with`."""

    def __init__(
        self, creation: Coroutine[Any, Any, resources.SessionInfo], client: AsyncClient
    ) -> None:
        """Wrap the call that makes it."""
        self._creation = creation
        self._client = client
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        """Wait for the session and leave its end to the caller."""
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        """Wait for the session; leaving the context deletes it."""
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the session."""
        assert self._session is not None, "left before it was entered"
        await self._session.__aexit__(exc_type, exc, traceback)

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._client, await self._creation)
