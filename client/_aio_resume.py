"""A score stream that goes on after a lost connection, for the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

from client import resources, results
from client._aio_streams import each
from client._resume import LOOKS, Sent, is_lost
from client._retry import RetryPolicy
from client.errors import DeqlmError
from client.options import StreamPiece

if TYPE_CHECKING:
    from client.aio import AsyncClient

Pieces = Iterable[StreamPiece] | AsyncIterable[StreamPiece]
Open = Callable[[AsyncIterable[StreamPiece]], AsyncGenerator[results.StreamedScore, None]]
"""Begins a stream."""


class _Feed:
    """The caller's pieces, for one stream after another."""

    def __init__(self, pieces: Pieces, sent: Sent) -> None:
        self.sent = sent
        self._pieces = each(pieces)
        self._failure: Exception | None = None
        self._is_over = False
        self._next: asyncio.Task[None] | None = None

    async def pieces(self) -> AsyncIterator[StreamPiece]:
        """From the first that is not committed."""
        index = self.sent.begin
        while index >= self.sent.begin:
            while index >= self.sent.end:
                if self._failure is not None:
                    raise self._failure
                if self._is_over:
                    return
                if self._next is None or self._next.done():
                    self._next = asyncio.ensure_future(self._read())
                # A stream that is lost ends this wait; the caller's pieces must not notice.
                await asyncio.shield(self._next)
            yield self.sent.piece(index)
            index += 1

    async def _read(self) -> None:
        try:
            self.sent.add(await anext(self._pieces))
        except StopAsyncIteration:
            self._is_over = True
        except Exception as error:
            self._failure = error

    def close(self) -> None:
        """Read no more."""
        if self._next is not None:
            self._next.cancel()


async def resuming(
    client: AsyncClient, session_id: str, pieces: Pieces, begin: Open, *, retry: RetryPolicy
) -> AsyncGenerator[results.StreamedScore, None]:
    """Yield the answers of one stream after another, until one comes to its end."""
    sent = Sent((await client.get_session(session_id)).position)
    feed, failures = _Feed(pieces, sent), 0
    try:
        while True:
            confirmed = 0
            try:
                async with contextlib.aclosing(begin(feed.pieces())) as answers:
                    async for answer in answers:
                        confirmed, failures = answer.committed_bytes, 0
                        sent.confirm(position=answer.committed_position, text_bytes=confirmed)
                        yield answer
                return
            except DeqlmError as error:
                failures += 1
                if not is_lost(error) or failures >= retry.max_attempts:
                    raise
                await asyncio.sleep(retry.backoff_s(failures, jitter=1.0))
                info = await _free(client, session_id, error, retry)
                try:
                    await _skip(client, info, sent, confirmed)
                except ValueError:
                    raise error from None
    finally:
        feed.close()


async def _free(
    client: AsyncClient, session_id: str, failure: DeqlmError, retry: RetryPolicy
) -> resources.SessionInfo:
    """The session, once the lost stream holds it no more. Raises DeqlmError."""
    for look in range(1, LOOKS):
        try:
            info = await client.get_session(session_id)
            if not info.busy:
                return info
        except DeqlmError as error:
            if not is_lost(error):
                raise
        await asyncio.sleep(retry.backoff_s(min(look, 8), jitter=1.0))
    raise failure


async def _skip(
    client: AsyncClient, info: resources.SessionInfo, sent: Sent, confirmed: int
) -> None:
    """Leave out what is committed. Raises ValueError where nobody can say what is."""
    sent.begin_anew(confirmed)
    while sent.position != info.position:
        text = sent.text() if sent.is_text else None
        tokens = (await client.tokenize(text, model=info.model)).tokens if text else ()
        sent.skip(info.position, tokens if sent.is_text else None)
