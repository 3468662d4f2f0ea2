"""SessionService."""

import base64
import binascii

from deqlm.v1 import session_pb2, session_pb2_grpc
from server import translate
from server.call import Call
from server.engine.engine import Engine
from server.engine.results import SessionView
from server.errors import InvalidFields
from server.servicers.edge import Edge
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
        view = engine.sessions.create(owner=call.owner, ttl_s=ttl_s, solve=solve)
        return session_pb2.CreateSessionResponse(session=translate.session(view, engine.name))

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
        copy = engine.sessions.fork(view.session_id, call.owner, ttl_s=ttl_s)
        return session_pb2.ForkSessionResponse(session=translate.session(copy, engine.name))

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, call: Call
    ) -> session_pb2.DeleteSessionResponse:
        """Forget a session."""
        engine, view = self._find(request.session_id, call)
        engine.sessions.delete(view.session_id, call.owner)
        return session_pb2.DeleteSessionResponse()

    def _find(self, session_id: str, call: Call) -> tuple[Engine, SessionView]:
        engine, view = self._edge.registry.session(session_id, call.owner)
        call.model = engine.name
        return engine, view

    def _all(self, engines: list[Engine] | None, owner: str) -> list[tuple[Engine, SessionView]]:
        chosen = self._edge.registry.engines() if engines is None else engines
        return [(engine, view) for engine in chosen for view in engine.sessions.list(owner)]


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
