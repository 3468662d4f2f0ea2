"""A whole server: its parts, made and wired, started and stopped."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc

from cli.build import this_build
from server import health
from server.attempts import Attempts
from server.channel import channel_options
from server.config import ServerConfig
from server.engine.engine import Engine
from server.engine.errors import EngineError
from server.errors import NotReady, rule_for
from server.events import Post
from server.guard import Guard
from server.invariants import Findings, Invariants
from server.loading import Loader, load_engine
from server.metrics.counts import Metrics
from server.metrics_endpoint import MetricsEndpoint
from server.persistence import Persistence
from server.profiling.errors import ProfilingError
from server.profiling.profiles import DEFAULT_STEPS, DEFAULT_TIME_S, Profiles
from server.registry import Registry
from server.security.guarding import Guarding
from server.servicers.admin import AdminServicer
from server.servicers.edge import Edge
from server.servicers.scoring import ScoringServicer
from server.services import SERVICES, add_services
from server.start import (
    bind,
    host_port,
    make_tracer,
    open_metrics,
    read_key,
    read_store,
)
from server.store.base import Head
from server.store.keeper import Keeper
from server.watch import watch_engines, watch_store

_LAST_WORDS_S = 1.0
"""What calls get to tell their clients how they ended."""

_IDLE_STREAM_S, _LOOK_AT_STREAMS_S = 1.0, 0.2
"""A stream whose client has sent nothing for so long does not hold up a stop."""

_log = logging.getLogger(__name__)


class Server:
    """Serves models over gRPC; as an async context manager it is ready inside."""

    def __init__(self, config: ServerConfig, *, load: Loader = load_engine) -> None:
        """Prepare to serve.

        Args:
            config: what to serve, and how.
            load: makes the engines.

        Raises:
            ServerConfigError: there is no model to serve, or it would be open to the world.
            SecurityFileError: who may call, or a certificate, is not as it must be.
            StartError: the key of exported sessions cannot be read, or is too short.
        """
        config.check_exposure()
        self.config = config
        self._build = this_build()
        self.metrics = Metrics(config.bucket_bounds)
        self.metrics.tell_build(self._build)
        self.port = 0
        self.metrics_port: int | None = None
        self._sources = config.sources()
        self._key = read_key(config.session_key_file)
        self._load = load
        self._registry = Registry([source.name for source in self._sources])
        self.metrics.watch_ready(lambda: self._registry.is_ready)
        self._guarding = Guarding(config, self.metrics.security)
        self._engines: list[Engine] = []
        self._endpoint: MetricsEndpoint | None = None
        self._loading: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []
        """What goes on for as long as it serves."""
        self._heads: list[Head] = []
        self.unsaved = 0
        """Sessions that a stop could not save."""
        self._profiles = Profiles(config.profile_dir, self._build.version)

    async def __aenter__(self) -> Self:
        """Start, and wait until the models are loaded."""
        await self.start()
        try:
            await self.wait_ready()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    @property
    def address(self) -> str:
        """Where it answers calls, as host:port."""
        return host_port(self.config.host, self.port)

    async def start(self) -> None:
        """Answer health checks from now on, and load the models meanwhile.

        Raises:
            StartError: a port is in use, the session store cannot be had, or there is no
                OpenTelemetry to trace with.
        """
        async with AsyncExitStack() as undo:
            self._tracer = make_tracer(self.config, self._build.version)
            if self._tracer is not None:
                undo.push_async_callback(asyncio.to_thread, self._tracer.close)
            await self._profiles.look()
            await self._open_store()
            undo.push_async_callback(asyncio.to_thread, self._persistence.close)
            self._server = self._make_server()
            undo.push_async_callback(self._server.stop, None)
            self.port = bind(self._server, self._guarding, self.config)
            self._endpoint = open_metrics(self.metrics.registry, self._guarding, self.config)
            undo.pop_all()
        self.metrics_port = None if self._endpoint is None else self._endpoint.port
        await self._health.set_loading()
        await self._server.start()
        self._loading = asyncio.create_task(self._load_all())
        self._beside.append(asyncio.create_task(self._guarding.run()))

    @property
    def has_files(self) -> bool:
        """Whether it reads files that may change: certificates, who may call."""
        return self._guarding.has_files

    def reload(self) -> None:
        """Read certificates and who may call anew, on any thread; calls that run go on."""
        self._guarding.reloader.reload()

    async def check(self) -> Findings:
        """Look whether everything adds up, as a signal asks for it, and log it."""
        found = await self._looked_at()
        self._guarding.audit.record(who="a signal", action="check", result="OK")
        _log.info(
            "invariants checked: %d problems, %d calls, %d leases, %d streams",
            len(found.problems),
            found.calls,
            found.leases,
            found.streams,
        )
        return found

    async def _looked_at(self) -> Findings:
        found = await self._invariants.check()
        for problem in found.problems:
            _log.error("invariant broken: %s", problem)
        return found

    async def profile(self) -> None:
        """Take a profile of the first model, as a signal asks for it, and tell the log."""
        result = "OK"
        try:
            engine = self._registry.engines()[0]
            await self._profiles.take(
                engine, steps=DEFAULT_STEPS, max_time_s=DEFAULT_TIME_S, why="a signal"
            )
        except (ProfilingError, EngineError, NotReady) as error:
            _log.error("no profile: %s", error)
            result = rule_for(error).code.name
        self._guarding.audit.record(who="a signal", action="profile", result=result)

    async def wait_ready(self) -> None:
        """Wait until calls are answered.

        Raises:
            CheckpointError, TokenizerError, ServerConfigError: a model cannot be loaded.
        """
        assert self._loading is not None, "start comes first"
        await asyncio.shield(self._loading)

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Take no more calls, let running ones finish, then end what is left.

        Args:
            grace_s: what running calls get; None for the configuration's.
        """
        deadline = time.monotonic() + (self.config.grace_s if grace_s is None else grace_s)
        await self._health.set_stopping()
        self._registry.close()
        self._profiles.close()
        if self._loading is not None:
            await asyncio.wait({self._loading})
        for task in self._beside:
            task.cancel()
        while (left_s := deadline - time.monotonic()) > 0:
            self._scoring.streams.expire(longer_than_s=_IDLE_STREAM_S)
            if await self._guard.wait_idle(min(left_s, _LOOK_AT_STREAMS_S)):
                break
        self._scoring.streams.expire()
        await asyncio.gather(
            *(asyncio.to_thread(engine.stop, grace_s=0.0) for engine in self._engines)
        )
        await self._guard.wait_idle(_LAST_WORDS_S)
        await self._attempts.wait(_LAST_WORDS_S)
        await self._persistence.settle(_LAST_WORDS_S)
        await self._looked_at()
        self.unsaved = await asyncio.to_thread(self._persistence.close)
        self._health.close()
        await self._server.stop(_LAST_WORDS_S)
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _open_store(self) -> None:
        """Open the session store and read what sessions it has; not what they hold."""
        config = self.config
        store, self._heads = await asyncio.to_thread(read_store, config)
        keeper = Keeper(store, timeout_s=config.store_timeout_s, observer=self.metrics.store)
        for head in self._heads:
            keeper.note(head.session_id, head.size)
        self.metrics.store.keeper = keeper
        self._persistence = Persistence(
            keeper=keeper,
            timeout_s=config.store_timeout_s,
            answer_bytes=config.answer_bytes,
            key=self._key,
        )
        self._registry.take_back = self._persistence.left.take_back
        self._registry.left = self._persistence.left.positions

    def _make_server(self) -> grpc.aio.Server:
        self._attempts = Attempts()
        self._health = health.Health((*SERVICES, health.STORE))
        self._guard = Guard(
            self.metrics,
            self._guarding.gate,
            send_timeout_s=self.config.send_timeout_s,
            logs_messages=self.config.log_messages,
            tracer=self._tracer,
        )
        edge = Edge(
            registry=self._registry,
            limits=self.config.request_limits,
            default_solve=self.config.default_solve,
            metrics=self.metrics,
            persistence=self._persistence,
            attempts=self._attempts,
            post=Post(),
            build=self._build,
        )
        self._scoring = ScoringServicer(edge)
        self._invariants = Invariants(
            engines=lambda: self._engines,
            guard=self._guard,
            persistence=self._persistence,
            attempts=self._attempts,
            streams=self._scoring.streams,
        )
        server = grpc.aio.server(interceptors=[self._guard], options=channel_options(self.config))
        add_services(
            server,
            edge,
            scoring=self._scoring,
            admin=AdminServicer(self._invariants, self._profiles, self._registry),
            health_servicer=self._health,
            has_reflection=self.config.reflection,
        )
        return server

    async def _load_all(self) -> None:
        for source in self._sources:
            if self._registry.is_closed:
                return
            observer = self.metrics.observer(source.name)
            engine = await asyncio.to_thread(self._load, source, self.config, observer)
            self._engines.append(engine)
            if count := self._persistence.adopt(engine, self._heads):
                _log.info("model %s has %d sessions in the store", engine.name, count)
            self.metrics.add_engine(engine)
        if count := self._persistence.left.leave(self._heads):
            _log.warning("the store has %d sessions that no model here has room for", count)
        self._heads.clear()
        self._registry.open(self._engines)
        await self._health.set_ready()
        self._beside.append(asyncio.create_task(watch_engines(self._engines, self._health)))
        self._beside.append(asyncio.create_task(watch_store(self._persistence, self._health)))
