"""Between the engines' sessions and the store: what is kept before a call is answered."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from deqlm.v1 import common_pb2
from server.engine.engine import Engine
from server.engine.errors import SessionNotFound
from server.engine.requests import Lease
from server.engine.results import SessionView
from server.engine.snapshots import Answer, Snapshot, largest_token
from server.errors import StoreUnavailable
from server.left import Left
from server.store.base import Head, StoreError
from server.store.keeper import Keeper
from server.tracing.current import stage

T = TypeVar("T")
Kept = common_pb2.Kept

KEPT_ANSWERS = 8
"""Answers to calls with idempotency keys that a session keeps."""
_FLUSH_S = 10.0
"""What a store gets at the end for what it has not taken yet."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Persistence:
    """Keeps sessions, and brings them back.

    Attributes:
        keeper: of the store.
        timeout_s: how long a call waits for it.
        answer_bytes: most bytes of answers that a session keeps.
        key: that exported sessions are signed with; None for none.
        leases: that calls have now, each with the name of its model.
        settling: saves of sessions, which go on where their calls end.
        left: sessions that the store has for no engine here.
    """

    keeper: Keeper
    timeout_s: float
    answer_bytes: int
    key: bytes | None = None
    leases: set[tuple[str, Lease]] = field(default_factory=set)
    settling: "set[asyncio.Task[Any]]" = field(default_factory=set)
    left: Left = field(init=False)
    _engines: dict[str, Engine] = field(default_factory=dict)
    _waited_for: dict[Lease, int] = field(default_factory=dict)
    """Last revision of a lease that the store has taken, or not within a call's patience."""

    def __post_init__(self) -> None:
        self.left = Left(self.keeper)
        self.keeper.on_saved = self._mark_saved
        self.keeper.is_current = self._is_current

    def adopt(self, engine: Engine, heads: Sequence[Head]) -> int:
        """Has an engine's sessions be kept from now on, and those that the store has be its own.

        Returns:
            How many sessions the store had for it.
        """
        self._engines[engine.name] = engine
        engine.memory.put_away = self._put_away
        engine.memory.captures = self.keeper.outlives
        engine.sessions.on_expired = self._drop
        return self.left.adopt(engine, heads)

    @asynccontextmanager
    async def leased(
        self, engine: Engine, session_id: str | None, owner: str
    ) -> AsyncIterator[Lease | None]:
        """The right to work on a session, which is there to be continued; None without one.

        Raises:
            SessionNotFound, SessionBusy: as they are.
            StoreUnavailable: it is in the store, which does not answer.
        """
        if session_id is None:
            yield None
            return
        lease = engine.sessions.acquire(session_id, owner)
        self.leases.add((engine.name, lease))
        try:
            if engine.sessions.is_away(lease):
                await self._bring(engine, lease)
            yield lease
        finally:
            self._leave(engine, lease)

    def _leave(self, engine: Engine, lease: Lease) -> None:
        """Frees a session; first it is saved, if that is not done or under way.

        A call may end between its commit and ``keep``. Its session is busy until it is saved: its
        client asks what came of the call, and may rely on what it is told of a session at rest.
        """
        held = self._waited_for.pop(lease, 0)
        if not self.keeper.outlives:
            engine.sessions.release(lease)
        elif not engine.sessions.release_kept(
            lease, held=max(held, self.keeper.held(lease.session_id))
        ):
            # It is in no call's trace.
            self._goes_on(asyncio.create_task(self._save_last(engine, lease), context=Context()))
            return
        self.leases.discard((engine.name, lease))

    async def _save_last(self, engine: Engine, lease: Lease) -> None:
        try:
            # The engine captures it after what it was told before: that the call is over.
            snapshot = await self.capture(engine, lease.session_id)
            if snapshot is not None:
                await self.save(snapshot)
        except Exception:
            _log.exception("session %s could not be captured", lease.session_id)
        finally:
            engine.sessions.release(lease)
            self.leases.discard((engine.name, lease))

    async def settle(self, timeout_s: float) -> None:
        """Waits for sessions that are being saved without their calls, for so long at most."""
        if self.settling:
            await asyncio.wait(self.settling, timeout=timeout_s)

    async def _bring(self, engine: Engine, lease: Lease) -> None:
        try:
            snapshot = await self._wait(self.keeper.load(lease.session_id), "load")
        except (StoreError, TimeoutError) as error:
            raise StoreUnavailable(lease.session_id) from error
        if snapshot is None:
            _log.error("session %s is not in the store any more", lease.session_id)
            raise SessionNotFound(lease.session_id)
        if snapshot.fingerprint != engine.fingerprint and not fits(snapshot, engine):
            _log.error("session %s has words that its model lacks now", lease.session_id)
            raise SessionNotFound(lease.session_id)
        engine.sessions.supply(lease, snapshot)

    async def keep(
        self,
        engine: Engine,
        lease: Lease | None,
        view: SessionView | None,
        answer: Answer | None = None,
    ) -> Kept:
        """Has the store take what a call has made of its session, if it keeps that.

        Args:
            engine: of the session.
            lease: of the call.
            view: the session after the commit; None where there was none.
            answer: to be given to those who send the call again.
        """
        if lease is None or view is None or engine.sessions.is_private(lease):
            return common_pb2.KEPT_UNSPECIFIED
        snapshot = view.snapshot
        if answer is not None:
            answers = engine.sessions.add_answer(
                lease, answer, max_bytes=self.answer_bytes, most=KEPT_ANSWERS
            )
            if snapshot is None and self.keeper.outlives:
                snapshot = await self.capture(engine, lease.session_id)
            elif snapshot is not None:
                revision = snapshot.revision + 1
                snapshot = replace(snapshot, answers=answers, revision=revision)
        if snapshot is None:
            return self._usually
        kept = await self.save(snapshot)
        self._waited_for[lease] = snapshot.revision
        return kept

    async def store(self, engine: Engine, session_id: str) -> Kept:
        """Has the store take a session as it is now, if it keeps sessions.

        That is done also where the call ends meanwhile.
        """
        if not self.keeper.outlives:
            return common_pb2.KEPT_IN_MEMORY
        storing = asyncio.create_task(self._store(engine, session_id))
        return await asyncio.shield(self._goes_on(storing))

    async def _store(self, engine: Engine, session_id: str) -> Kept:
        snapshot = await self.capture(engine, session_id)
        return common_pb2.KEPT_IN_STORE if snapshot is None else await self.save(snapshot)

    def _goes_on(self, task: "asyncio.Task[T]") -> "asyncio.Task[T]":
        """What nobody cancels, and a stop waits for."""
        self.settling.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: "asyncio.Task[Any]") -> None:
        self.settling.discard(task)
        if not task.cancelled():
            task.exception()  # its call may not be there any more to hear of it

    async def capture(self, engine: Engine, session_id: str) -> Snapshot | None:
        """All of a session as it is now; None where the store alone has it, or nobody."""
        if not engine.alive:
            future = await asyncio.to_thread(engine.capture, session_id)
        else:
            future = engine.capture(session_id)
        return await asyncio.wrap_future(future)

    async def save(self, snapshot: Snapshot) -> Kept:
        """Has the store take a session."""
        try:
            is_stored = await self._wait(self.keeper.save(snapshot), "save")
        except TimeoutError:
            is_stored = False
        return self._kept(is_stored)

    async def drop(self, session_id: str) -> Kept:
        """Has the store forget a session."""
        try:
            is_stored = await self._wait(self.keeper.drop(session_id), "drop")
        except TimeoutError:
            is_stored = False
        return self._kept(is_stored)

    def close(self) -> int:
        """Saves what is not saved, and lets go of the store; blocks. The engines are at rest.

        Returns:
            How many sessions could not be saved.
        """
        lost = 0
        if self.keeper.outlives:
            for engine in self._engines.values():
                for session_id in engine.sessions.unsaved():
                    lost += not self._save_at_rest(engine, session_id)
        self.keeper.close(timeout_s=_FLUSH_S)
        if drops := self.keeper.waiting - self.keeper.unsaved:
            _log.error("sessions that are deleted, and stay in the store: %d", drops)
        return lost + self.keeper.unsaved

    def _save_at_rest(self, engine: Engine, session_id: str) -> bool:
        """Has the store get a session at the end; False where what it holds cannot be had."""
        try:
            snapshot = engine.capture(session_id).result()
        except Exception:
            _log.exception("session %s could not be captured", session_id)
            return self.keeper.held(session_id) > 0
        if snapshot is not None:
            self.keeper.save(snapshot)
        return True

    @property
    def _usually(self) -> Kept:
        """Where sessions are while the store is up."""
        return common_pb2.KEPT_IN_STORE if self.keeper.outlives else common_pb2.KEPT_IN_MEMORY

    def _kept(self, is_stored: bool) -> Kept:
        return self._usually if is_stored else common_pb2.KEPT_IN_MEMORY

    async def _wait(self, future: "Future[T]", operation: str) -> T:
        with stage("store", operation=operation):
            return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout_s)

    def _put_away(self, snapshot: Snapshot) -> None:
        self.keeper.save(snapshot)

    def _drop(self, session_id: str) -> None:
        self.keeper.drop(session_id)

    def _is_current(self, snapshot: Snapshot) -> bool:
        engine = self._engines.get(snapshot.model)
        return engine is None or engine.sessions.is_current(snapshot)

    def _mark_saved(self, snapshot: Snapshot) -> None:
        engine = self._engines.get(snapshot.model)
        if engine is not None:
            engine.sessions.mark_saved(snapshot)


def fits(snapshot: Snapshot, engine: Engine) -> bool:
    """Whether an engine's vocabulary has all of a session's tokens."""
    return largest_token(snapshot.tokens) < engine.config.n_token
