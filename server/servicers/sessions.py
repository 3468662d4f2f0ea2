"""SessionService."""

import asyncio
import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import replace

from deqlm.v1 import session_pb2, session_pb2_grpc
from server import translate
from server.call import Call
from server.engine.engine import Engine
from server.engine.errors import SessionNotFound
from server.engine.results import SessionView
from server.engine.snapshots import Snapshot
from server.engine.states import is_usable
from server.errors import InvalidFields
from server.persistence import fits
from server.servicers.edge import Edge
from server.store.blob import BlobError, read_blob, write_blob
from server.validation import check_create, check_fork, check_page_size

_Key = tuple[float, str]


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Creates and looks after sessions."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, call: Call
    ) -> session_pb2.CreateSessionResponse:
        """Make an empty session."""
        engine = self._edge.registry.engine(request.model)
        call.model = engine.name
        ttl_s, solve = check_create(
            request, limits=self._edge.limits, solve=self._edge.default_solve
        )
        new_id = _named(request.idempotency_key, "create", call.owner, engine.name)
        view = self._existing(engine, new_id, call.owner)
        if view is None:
            call.check_room(self._edge.registry)
            view = engine.sessions.create(
                owner=call.owner, ttl_s=ttl_s, solve=solve, session_id=new_id
            )
        kept = await self._edge.persistence.store(engine, view.session_id)
        session = translate.session(view, engine.name)
        return session_pb2.CreateSessionResponse(session=session, kept=kept)

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, call: Call
    ) -> session_pb2.GetSessionResponse:
        """Tell about a session."""
        engine, view = self._find(request.session_id, call)
        return session_pb2.GetSessionResponse(session=translate.session(view, engine.name))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, call: Call
    ) -> session_pb2.ListSessionsResponse:
        """A page of the owner's sessions, oldest first."""
        size = check_page_size(request.page_size)
        after = _read_page_token(request.page_token)
        engines = [self._edge.registry.engine(request.model)] if request.model else None
        found = sorted(
            ((_key(view), engine.name, view) for engine, view in self._all(engines, call.owner)),
            key=lambda item: item[0],
        )
        rest = [item for item in found if after is None or item[0] > after]
        page = rest[:size]
        return session_pb2.ListSessionsResponse(
            sessions=[translate.session(view, name) for _, name, view in page],
            next_page_token=_page_token(page[-1][0]) if len(rest) > size else "",
        )

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, call: Call
    ) -> session_pb2.ForkSessionResponse:
        """Copy a session."""
        engine, view = self._find(request.session_id, call)
        ttl_s = check_fork(request, limits=self._edge.limits)
        persistence = self._edge.persistence
        new_id = _named(request.idempotency_key, "fork", call.owner, view.session_id)
        copy = self._existing(engine, new_id, call.owner)
        if copy is None:
            async with persistence.leased(engine, view.session_id, call.owner) as lease:
                call.check_room(self._edge.registry)
                copy = engine.sessions.fork(
                    view.session_id, call.owner, ttl_s=ttl_s, lease=lease, copy_id=new_id
                )
        kept = await persistence.store(engine, copy.session_id)
        session = translate.session(copy, engine.name)
        return session_pb2.ForkSessionResponse(session=session, kept=kept)

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, call: Call
    ) -> session_pb2.DeleteSessionResponse:
        """Forget a session."""
        self._edge.registry.engines()  # before all else: the server may be closed
        persistence = self._edge.persistence
        if not persistence.left.forget(request.session_id, call.owner):
            engine, view = self._find(request.session_id, call)
            engine.sessions.delete(view.session_id, call.owner)
        kept = await persistence.drop(request.session_id)
        return session_pb2.DeleteSessionResponse(kept=kept)

    async def ExportSession(
        self, request: session_pb2.ExportSessionRequest, call: Call
    ) -> session_pb2.ExportSessionResponse:
        """Give a session out as bytes."""
        engine, view = self._find(request.session_id, call)
        persistence = self._edge.persistence
        async with persistence.leased(engine, view.session_id, call.owner):
            snapshot = await persistence.capture(engine, view.session_id)
        if snapshot is None:
            raise SessionNotFound(view.session_id)
        blob = await asyncio.to_thread(write_blob, snapshot, key=persistence.key, answers=False)
        view = engine.sessions.get(view.session_id, call.owner)
        session = translate.session(view, engine.name)
        return session_pb2.ExportSessionResponse(blob=blob, session=session)

    async def ImportSession(
        self, request: session_pb2.ImportSessionRequest, call: Call
    ) -> session_pb2.ImportSessionResponse:
        """Make a session of such bytes."""
        self._edge.registry.engines()  # before all work: the server may be closed
        ttl_s = check_fork(request, limits=self._edge.limits)
        persistence = self._edge.persistence
        try:
            opened = await asyncio.to_thread(
                read_blob, request.blob, key=persistence.key, strict=True
            )
        except BlobError as error:
            problem = f"blob must be what ExportSession gave: {error}"
            raise InvalidFields([("blob", problem)]) from error
        engine = self._edge.registry.engine(request.model or opened.snapshot.model)
        call.model = engine.name
        snapshot = await asyncio.to_thread(self._fitted, opened.snapshot, engine)
        digest = hashlib.blake2b(request.blob).hexdigest()
        new_id = _named(request.idempotency_key, "import", call.owner, f"{engine.name} {digest}")
        view = self._existing(engine, new_id, call.owner)
        if view is None:
            call.check_room(self._edge.registry, tokens=snapshot.position)
            unsolved = snapshot.position if snapshot.states is None else 0
            with call.paid(unsolved):
                view = engine.sessions.add(
                    self._imported(snapshot, engine, call.owner, new_id, ttl_s)
                )
        kept = await persistence.store(engine, view.session_id)
        session = translate.session(view, engine.name)
        return session_pb2.ImportSessionResponse(session=session, kept=kept)

    def _fitted(self, snapshot: Snapshot, engine: Engine) -> Snapshot:
        """What an engine can make of a session, without states that it cannot go on from.

        Raises:
            InvalidFields: it does not have the tokens, or could not score so many of them.
        """
        if not fits(snapshot, engine):
            problem = f"blob must have token ids below {engine.config.n_token}, and has others"
            raise InvalidFields([("blob", problem)])
        count, most = snapshot.position, self._edge.limits.max_score_tokens
        is_same = snapshot.fingerprint == engine.fingerprint
        if is_same and is_usable(snapshot.states, count, engine.config):
            return snapshot
        if count > most:
            problem = (
                f"blob must have at most {most} tokens where this model cannot go on from its "
                f"states, as they have to be solved again, got {count}"
            )
            raise InvalidFields([("blob", problem)])
        return replace(snapshot, states=None)

    def _imported(
        self,
        snapshot: Snapshot,
        engine: Engine,
        owner: str,
        session_id: str | None,
        ttl_s: float | None,
    ) -> Snapshot:
        """What is taken over of a session from elsewhere, within the bounds that hold here."""
        limits, solve = self._edge.limits, snapshot.solve
        return replace(
            snapshot,
            session_id=session_id or secrets.token_hex(16),
            model=engine.name,
            owner=owner,
            ttl_s=min(snapshot.ttl_s, limits.max_ttl_s) if ttl_s is None else ttl_s,
            solve=replace(solve, max_nfe=min(solve.max_nfe, limits.max_nfe)),
            revision=1,
            answers=(),
        )

    def _find(self, session_id: str, call: Call) -> tuple[Engine, SessionView]:
        engine, view = self._edge.registry.session(session_id, call.owner)
        call.model = engine.name
        return engine, view

    def _existing(self, engine: Engine, session_id: str | None, owner: str) -> SessionView | None:
        """The session that the same call has made before, if it has; it may be left in the store.

        Raises:
            SessionLimit: it is, and there is no room for it.
        """
        if session_id is None:
            return None
        try:
            return engine.sessions.get(session_id, owner)
        except SessionNotFound:
            found = self._edge.persistence.left.take_back(session_id, owner)
            return None if found is None else found[1]

    def _all(self, engines: list[Engine] | None, owner: str) -> list[tuple[Engine, SessionView]]:
        chosen = self._edge.registry.engines() if engines is None else engines
        return [(engine, view) for engine in chosen for view in engine.sessions.list(owner)]


def _named(key: str, kind: str, owner: str, what: str) -> str | None:
    """The id of the session that a call with an idempotency key makes; None without one."""
    if not key:
        return None
    parts = json.dumps([kind, owner, what, key]).encode("utf-8")
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def _key(view: SessionView) -> _Key:
    """Orders sessions by age, and those of one instant somehow."""
    return (view.create_time, view.session_id)


def _page_token(key: _Key) -> str:
    text = f"{key[0]!r} {key[1]}"
    return base64.urlsafe_b64encode(text.encode("utf-8")).decode("ascii")


def _read_page_token(token: str) -> _Key | None:
    if not token:
        return None
    try:
        text = base64.urlsafe_b64decode(token.encode("utf-8")).decode("utf-8")
        create_time, _, session_id = text.partition(" ")
        return (float(create_time), session_id)
    except (binascii.Error, ValueError):
        problem = f"page_token must be one that the server made, got {token!r}"
        raise InvalidFields([("page_token", problem)]) from None
