"""The served models by name, and which of them a call is about."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from server.engine.engine import Engine
from server.engine.errors import EngineStopped, SessionNotFound
from server.engine.results import SessionView
from server.engine.snapshots import TOKEN_BYTES
from server.errors import InvalidFields, ModelNotFound, NotReady
from server.validation import check_session_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the sessions of an owner may take.

    Attributes:
        sessions: those there are; of its streams, and left in the store, as well.
        bytes: of memory, each counted with all that it may take and its tokens' ids.
        more_bytes: that one more may take.
    """

    sessions: int
    bytes: int
    more_bytes: int


class Registry:
    """Engines in the order of the configuration; closed until all are warm."""

    def __init__(self, names: Sequence[str]) -> None:
        """Tell the models that will be there, the default one first."""
        self._names = tuple(names)
        self._engines: dict[str, Engine] = {}
        self._streams: dict[str, tuple[str, SessionView]] = {}
        self.is_closed = False
        """Whether the server is shutting down."""
        self.take_back: Callable[[str, str], tuple[Engine, SessionView] | None] = (
            lambda session_id, owner: None
        )
        """Has a session that was left in the store, by id and owner, be an engine's."""
        self.left: Callable[[str, str], Sequence[int]] = lambda model, owner: ()
        """Tokens of each that was left there, by model and owner."""

    @property
    def is_ready(self) -> bool:
        """Whether calls are taken."""
        return len(self._engines) == len(self._names) and not self.is_closed

    def open(self, engines: Sequence[Engine]) -> None:
        """Take calls from now on: the engines are warm, one for every name."""
        self._engines = {engine.name: engine for engine in engines}

    def close(self) -> None:
        """Take no more calls."""
        self.is_closed = True

    def engines(self) -> list[Engine]:
        """All, the default one first. Raises NotReady, EngineStopped."""
        if self.is_closed:
            raise EngineStopped("the server is shutting down")
        if not self.is_ready:
            raise NotReady()
        return [self._engines[name] for name in self._names]

    def engine(self, model: str) -> Engine:
        """The engine of a model; the default one's for an empty name.

        Raises:
            ModelNotFound: there is none of that name.
            NotReady, EngineStopped: no calls are taken.
        """
        engines = self.engines()
        if not model:
            return engines[0]
        if model not in self._engines:
            raise ModelNotFound(model, self._names)
        return self._engines[model]

    @contextmanager
    def streaming(self, session: SessionView, owner: str) -> Iterator[None]:
        """Counts a session that an owner's stream has for itself."""
        self._streams[session.session_id] = (owner, session)
        try:
            yield
        finally:
            del self._streams[session.session_id]

    def usage(self, owner: str) -> Usage:
        """What an owner's sessions may take, and one more. Raises NotReady, EngineStopped."""
        held, held_bytes, more_bytes = 0, 0, 0
        for engine in self.engines():
            positions = [*self._positions(engine, owner), *self.left(engine.name, owner)]
            held += len(positions)
            held_bytes += len(positions) * engine.session_bytes + TOKEN_BYTES * sum(positions)
            more_bytes = max(more_bytes, engine.session_bytes)
        return Usage(sessions=held, bytes=held_bytes, more_bytes=more_bytes)

    def _positions(self, engine: Engine, owner: str) -> Iterator[int]:
        """Tokens of each of an owner's sessions, those of its streams included."""
        for view in engine.sessions.list(owner):
            yield view.position
        for other, session in self._streams.values():
            if other == owner:
                with suppress(SessionNotFound):  # it is of another engine
                    yield engine.sessions.get(session.session_id, session.owner).position

    def session(self, session_id: str, owner: str) -> tuple[Engine, SessionView]:
        """The session of a call, and the engine that holds it.

        Raises:
            InvalidFields: the id is empty.
            SessionNotFound: no engine knows it.
            SessionLimit: the store has it, and no engine has room for it.
            NotReady, EngineStopped: no calls are taken.
        """
        check_session_id(session_id)
        for engine in self.engines():
            try:
                return engine, engine.sessions.get(session_id, owner)
            except SessionNotFound:
                continue
        found = self.take_back(session_id, owner)
        if found is None:
            raise SessionNotFound(session_id)
        return found

    def for_call(
        self, model: str, session_id: str | None, owner: str, *, prefix: str = ""
    ) -> tuple[Engine, SessionView | None]:
        """The engine of a call that names a model, a session, both or neither.

        Raises:
            InvalidFields: the session is another model's, or its id is empty.
            ModelNotFound, SessionNotFound, SessionLimit, NotReady, EngineStopped: as above.
        """
        if session_id is None:
            return self.engine(model), None
        named = self.engine(model)
        engine, view = self.session(session_id, owner)
        if model and named is not engine:
            field = f"{prefix}model"
            bound = f"must be {engine.name!r}, the session's, or empty"
            raise InvalidFields([(field, f"{field} {bound}, got {model!r}")])
        return engine, view
