"""What each kind of request does: calls of the client, timed, none of them repeated."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from client.aio import AsyncClient
from client.errors import Aborted, DeqlmError
from client.options import FLUSH, SamplingOptions, StopOptions, StreamPiece
from client.results import GeneratedToken
from loadtest.entry import Entry
from loadtest.records import CLIENT_ERROR, CUT_OFF, FOUND_HERE
from loadtest.texts import Texts

MOST_IDLE: Final = 8
"""Sessions of one process that wait for their next turn."""
_TTL_S: Final = 600.0
"""After which the server drops a session that was left behind."""
_DELETE_S: Final = 5.0
_BUSY_S: Final = 0.05
_MESSAGE: Final = 80


@dataclass(slots=True)
class Conversation:
    """A session between its turns."""

    client: AsyncClient
    session_id: str
    turns_left: int


class Acts:
    """Does requests with the clients of one process, and keeps their sessions."""

    def __init__(self, clients: list[AsyncClient], texts: Texts, *, model: str, tokens: bool):
        """Take one client for each owner; ``tokens``: whether every token's score is asked for."""
        self._clients, self._texts = clients, texts
        self._model, self._tokens = model, tokens
        self._idle: list[Conversation] = []
        self._acts = {
            "score": self._score,
            "stream": self._stream,
            "generate": self._generate,
            "session": self._session,
            "fork": self._fork,
            "cancel": self._cancel,
        }

    async def act(self, entry: Entry) -> None:
        """Do what is planned; how it ends is in the record."""
        record = entry.record
        try:
            await self._acts[record.plan.kind](entry)
        except DeqlmError as error:
            record.status, record.reason = error.code.name, error.reason
            if not error.reason and record.status not in FOUND_HERE:
                record.reason = error.message[:_MESSAGE]
        except asyncio.CancelledError:
            record.status = CUT_OFF
            raise
        except Exception as error:
            record.status, record.reason = CLIENT_ERROR, type(error).__name__

    async def forget(self) -> None:
        """Delete all sessions."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_delete(one.client, one.session_id) for one in idle))

    def _client(self, entry: Entry) -> AsyncClient:
        return self._clients[entry.record.plan.begin % len(self._clients)]

    def _text(self, entry: Entry) -> str:
        return self._texts.cut(entry.record.plan.begin, entry.record.plan.words)

    async def _score(self, entry: Entry) -> None:
        await self._score_with(entry, self._client(entry), None)

    async def _score_with(self, entry: Entry, client: AsyncClient, session: str | None) -> None:
        with entry.call("Score"):
            score = await client.score(
                self._text(entry),
                session=session,
                model="" if session else self._model,
                include_tokens=self._tokens,
                timeout_s=entry.remaining_s,
            )
        entry.scored(score.call, score.solver, score.timing.queue_s)

    async def _stream(self, entry: Entry) -> None:
        plan, last = entry.record.plan, None
        pieces = self._texts.pieces(plan.begin, plan.words, plan.piece)
        with entry.call("ScoreStream"):
            async for answer in self._client(entry).score_stream(
                _flushed(pieces),
                model=self._model,
                include_tokens=self._tokens,
                timeout_s=entry.remaining_s,
            ):
                entry.token()
                last = answer
        if last is not None:
            entry.scored(last.call, last.solver, last.timing.queue_s)

    async def _generate(self, entry: Entry, cancel_s: float | None = None) -> None:
        plan = entry.record.plan
        generation = self._client(entry).generate(
            self._text(entry),
            model=self._model,
            sampling=SamplingOptions(seed=plan.begin),
            stop=StopOptions(max_tokens=plan.max_tokens or None, ignore_eos=True),
            timeout_s=entry.remaining_s,
        )
        timer = None
        if cancel_s is not None:
            timer = asyncio.get_running_loop().call_later(cancel_s, generation.close)
        try:
            with entry.call("Generate"):
                async for event in generation.events():
                    if isinstance(event, GeneratedToken):
                        entry.token()
                        entry.record.generated += 1
        finally:
            if timer is not None:
                timer.cancel()
        if generation.finished is not None:
            entry.generated(generation.finished)

    async def _cancel(self, entry: Entry) -> None:
        """A generation, or every other time a text that is scored."""
        plan = entry.record.plan
        if plan.number % 2 == 0:
            await self._generate(entry, plan.cancel_s)
            return
        scoring = asyncio.ensure_future(self._score(entry))
        try:
            await asyncio.wait([scoring], timeout=plan.cancel_s)
        finally:
            scoring.cancel()
        try:
            await scoring
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            entry.record.status = "CANCELLED"

    async def _session(self, entry: Entry) -> None:
        async with self._conversation(entry) as one:
            await self._score_with(entry, one.client, one.session_id)
            one.turns_left -= 1

    async def _fork(self, entry: Entry) -> None:
        async with self._conversation(entry) as one:
            with entry.call("ForkSession"):
                copy = await one.client.fork_session(one.session_id)
            try:
                await self._score_with(entry, one.client, copy.session_id)
            finally:
                await _delete(one.client, copy.session_id)

    @contextlib.asynccontextmanager
    async def _conversation(self, entry: Entry) -> AsyncIterator[Conversation]:
        """A session that nobody uses now; it is kept for more turns, unless a call fails."""
        one = self._idle.pop(0) if self._idle else await self._begin(entry)
        try:
            yield one
        except BaseException:
            await _delete(one.client, one.session_id)
            raise
        if one.turns_left > 0 and len(self._idle) < MOST_IDLE:
            self._idle.append(one)
        else:
            await _delete(one.client, one.session_id)

    async def _begin(self, entry: Entry) -> Conversation:
        client = self._client(entry)
        with entry.call("CreateSession"):
            info = await client.create_session(model=self._model, ttl_s=_TTL_S)
        return Conversation(client, info.session_id, entry.record.plan.turns)


async def _flushed(pieces: list[str]) -> AsyncIterator[StreamPiece]:
    """The pieces, each to be answered at once."""
    for piece in pieces:
        yield piece
        yield FLUSH


async def _delete(client: AsyncClient, session_id: str) -> None:
    """Delete a session that is not needed; where that fails its time to live ends it."""
    with contextlib.suppress(DeqlmError, TimeoutError):
        async with asyncio.timeout(_DELETE_S):
            while True:
                try:
                    return await client.delete_session(session_id)
                except Aborted:  # a call that was cancelled still holds it
                    await asyncio.sleep(_BUSY_S)
