"""All streams that are open: each has its session, and ends when the server stops."""

import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deqlm.v1 import scoring_pb2
from server.call import Call
from server.engine.engine import Engine
from server.engine.errors import EngineError, EngineStopped
from server.engine.requests import Lease
from server.engine.results import SessionView
from server.errors import InvalidFields
from server.servicers.edge import Edge
from server.servicers.inbox import Inbox, Message, Messages
from server.servicers.stream import Stream
from server.validation import check_stream_config


class Streams:
    """All streams that are open."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._inboxes: set[Inbox] = set()

    def __len__(self) -> int:
        return len(self._inboxes)

    def expire(self, *, longer_than_s: float = -math.inf) -> None:
        """End the streams that have waited so long for their clients: the server stops."""
        before = time.monotonic() - longer_than_s
        for inbox in self._inboxes:
            if inbox.waits_since <= before:
                inbox.fail(EngineStopped("the server is shutting down"))

    async def run(self, messages: Messages, call: Call) -> None:
        """Answer one stream."""
        inbox = Inbox(messages)
        self._inboxes.add(inbox)
        try:
            last = await self._score(inbox, call)
        finally:
            self._inboxes.discard(inbox)
            inbox.close()
        # Only now: the session is free when the client learns that the stream is over.
        await call.send(last)
        call.finished = "scored"

    async def _score(self, inbox: Inbox, call: Call) -> scoring_pb2.ScoreStreamResponse:
        config = _config(await inbox.next())
        session_id = config.session_id if config.HasField("session_id") else None
        engine, view = self._edge.registry.for_call(
            config.model, session_id, call.owner, prefix="config."
        )
        call.model = engine.name
        fields = check_stream_config(
            config, limits=self._edge.limits, solve=self._edge.solve_of(view)
        )
        async with self._session(engine, view, call) as (session, lease):
            await call.accept()
            stream = Stream(self._edge, engine, fields, session, lease, call, inbox)
            return await stream.run(session_id)

    @asynccontextmanager
    async def _session(
        self, engine: Engine, view: SessionView | None, call: Call
    ) -> AsyncIterator[tuple[SessionView, Lease]]:
        """The stream's session, busy for as long as it lasts; a private one goes with it."""
        if view is not None:
            async with self._leased(engine, view.session_id, call.owner) as leased:
                yield leased
            return
        call.check_room(self._edge.registry)
        # Nobody else can name the owner, so that nobody else sees the session.
        owner = f"stream {secrets.token_hex(16)}"
        view = engine.sessions.create(
            owner=owner,
            ttl_s=self._edge.limits.max_ttl_s,
            solve=self._edge.default_solve,
            is_private=True,
        )
        try:
            with self._edge.registry.streaming(view, call.owner):
                async with self._leased(engine, view.session_id, owner) as leased:
                    yield leased
        finally:
            # Gone already is gone enough, and a stopped engine holds nothing.
            with contextlib.suppress(EngineError):
                engine.sessions.delete(view.session_id, owner)

    @asynccontextmanager
    async def _leased(
        self, engine: Engine, session_id: str, owner: str
    ) -> AsyncIterator[tuple[SessionView, Lease]]:
        async with self._edge.persistence.leased(engine, session_id, owner) as lease:
            assert lease is not None
            yield engine.sessions.get(session_id, owner), lease


def _config(message: Message | None) -> scoring_pb2.ScoreStreamConfig:
    kind = "nothing" if message is None else message.WhichOneof("kind") or "nothing"
    if message is None or kind != "config":
        raise InvalidFields([("config", f"config must be the first message, got {kind}")])
    return message.config
