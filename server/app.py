"""A whole server: its parts, made and wired, started and stopped."""

import asyncio
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cli.build import this_build
from deqlm.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from server import health
from server.attempts import Attempts
from server.channel import channel_options
from server.config import METRICS_OFF, ServerConfig
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
from server.servicers.generation import GenerationServicer
from server.servicers.models import ModelServicer
from server.servicers.scoring import ScoringServicer
from server.servicers.sessions import SessionServicer
from server.servicers.tokenizing import TokenizerServicer
from server.store.base import Head, SessionStore, StoreError, StoreOpenError
from server.store.keeper import Keeper
from server.store.opening import open_store
from server.tracing.current import Tracer

SERVICES = tuple(
    service.full_name
    for module in (
        scoring_pb2,
        generation_pb2,
        session_pb2,
        tokenizer_pb2,
        model_pb2,
        admin_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Full names of our services."""

_LAST_WORDS_S = 1.0
"""What calls get to tell their clients how they ended."""

_LOOK_S = 1.0
"""How often the engines are looked after."""

_LOOK_AT_STORE_S = 0.25
_IDLE_STREAM_S, _LOOK_AT_STREAMS_S = 1.0, 0.2
"""A stream whose client has sent nothing for so long does not hold up a stop."""
_LEAST_KEY_BYTES = 16

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message says what to change."""


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
        """
        config.check_exposure()
        self.config = config
        self._build = this_build()
        self.metrics = Metrics(config.bucket_bounds)
        self.metrics.tell_build(self._build)
        self.port = 0
        self.metrics_port: int | None = None
        self._sources = config.sources()
        self._key = _read_key(config.session_key_file)
        self._load = load
        self._registry = Registry([source.name for source in self._sources])
        self.metrics.watch_ready(lambda: self._registry.is_ready)
        self._guarding = Guarding(config, self.metrics.security)
        self._engines: list[Engine] = []
        self._endpoint: MetricsEndpoint | None = None
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._watching_store: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._heads: list[Head] = []
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
        return _join(self.config.host, self.port)

    async def start(self) -> None:
        """Answer health checks from now on, and load the models meanwhile.

        Raises:
            StartError: a port is in use.
        """
        await self._open_store()
        self._tracer = _make_tracer(self.config)
        self._attempts = Attempts()
        self._guard = Guard(
            self.metrics,
            self._guarding.gate,
            send_timeout_s=self.config.send_timeout_s,
            logs_messages=self.config.log_messages,
            tracer=self._tracer,
        )
        self._health = health.Health((*SERVICES, health.STORE))
        self._server = self._make_server()
        try:
            self.port = self._bind()
            self._open_metrics()
        except StartError:
            await self._server.stop(None)
            await asyncio.to_thread(self._persistence.close)
            raise
        await self._health.set_loading()
        await self._server.start()
        self._loading = asyncio.create_task(self._load_all())
        self._reloading = asyncio.create_task(self._guarding.run())

    @property
    def has_files(self) -> bool:
        """Whether it reads files that may change: certificates, who may call."""
        return self._guarding.has_files

    def reload(self) -> None:
        """Read certificates and who may call anew, on any thread; calls that run go on."""
        self._guarding.reloader.reload()

    async def check(self) -> Findings:
        """Look whether everything adds up, and log it."""
        found = await self._invariants.check()
        for problem in found.problems:
            _log.error("invariant broken: %s", problem)
        _log.info(
            "invariants checked: %d problems, %d calls, %d leases, %d streams",
            len(found.problems),
            found.calls,
            found.leases,
            found.streams,
        )
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
        if self._loading is not None:
            await asyncio.wait({self._loading})
        for task in (self._watching, self._watching_store, self._reloading):
            if task is not None:
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
        await asyncio.to_thread(self._persistence.close)
        self._health.close()
        await self._server.stop(_LAST_WORDS_S)
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _open_store(self) -> None:
        """Open the session store and read what sessions it has; not what they hold."""
        config = self.config

        def open_it() -> tuple[SessionStore, list[Head]]:
            store = open_store(
                config.session_store, sync=config.store_sync, timeout_s=config.store_timeout_s
            )
            return store, list(store.heads())

        try:
            store, self._heads = await asyncio.to_thread(open_it)
        except (StoreOpenError, StoreError) as error:
            raise StartError(f"{error}; choose another with --session-store") from error
        keeper = Keeper(store, timeout_s=config.store_timeout_s, observer=self.metrics.store)
        self.metrics.store.keeper = keeper
        self._persistence = Persistence(
            keeper=keeper,
            timeout_s=config.store_timeout_s,
            answer_bytes=config.answer_bytes,
            key=self._key,
        )

    def _make_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=[self._guard], options=channel_options(self.config))
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
        scoring_pb2_grpc.add_ScoringServiceServicer_to_server(self._scoring, server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationServicer(edge), server
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(edge), server)
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerServicer(edge), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(edge), server)
        self._invariants = Invariants(
            engines=lambda: self._engines,
            guard=self._guard,
            persistence=self._persistence,
            attempts=self._attempts,
            streams=self._scoring.streams,
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(self._invariants, self._profiles, self._registry), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self.config.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _bind(self) -> int:
        address = _join(self.config.host, self.config.port)
        try:
            return self._guarding.add_port(self._server, address)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: the port is in use or the host is not this "
                "machine's; choose others with --host and --port (0 takes a free port)"
            ) from error

    def _open_metrics(self) -> None:
        host, port = self.config.metrics_host, self.config.metrics_port
        if port == METRICS_OFF:
            return
        try:
            self._endpoint = MetricsEndpoint(
                self.metrics.registry,
                host=host,
                port=port,
                allow=self._guarding.allow_metrics,
                context=self._guarding.http_context,
            )
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} for metrics: {error.strerror}; choose others with "
                "--metrics-host and --metrics-port (0 takes a free port, -1 turns metrics off)"
            ) from error
        self.metrics_port = self._endpoint.port

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
        if count := self._persistence.leave(self._heads):
            _log.warning("the store has %d sessions that no model here has room for", count)
        self._heads.clear()
        self._registry.open(self._engines)
        await self._health.set_ready()
        self._watching = asyncio.create_task(self._watch_engines())
        self._watching_store = asyncio.create_task(self._watch_store())

    async def _watch_store(self) -> None:
        """Tell by health whether the session store does what it is asked."""
        was_up = True
        while True:
            await asyncio.sleep(_LOOK_AT_STORE_S)
            self._persistence.expire_left()
            if self._persistence.keeper.is_up != was_up:
                was_up = not was_up
                await self._health.set_store(is_up=was_up)

    async def _watch_engines(self) -> None:
        """Tell by health when an engine's thread has ended, which only a defect can do."""
        while all(engine.alive for engine in self._engines):
            await asyncio.sleep(_LOOK_S)
        _log.error("an engine's thread is gone: the server is not healthy any more")
        await self._health.set_stopping()


def _join(host: str, port: int) -> str:
    """Host and port as one name; the colons of IPv6 need brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_key(path: str) -> bytes | None:
    """The key of exported sessions; None without a file. White space at its end does not count.

    Raises:
        StartError: the file cannot be read, or holds too little.
    """
    if not path:
        return None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise StartError(f"cannot read session_key_file {path}: {error.strerror}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise StartError(
            f"session_key_file {path} must hold at least {_LEAST_KEY_BYTES} bytes, got {len(key)}"
        )
    return key


def _make_tracer(config: ServerConfig) -> Tracer | None:
    """What makes spans, if somebody is to get them.

    Raises:
        StartError: OpenTelemetry is not installed.
    """
    if not config.trace_endpoint:
        return None
    try:
        from server.tracing.tracer import OtelTracer
    except ImportError as error:
        raise StartError(
            f"trace_endpoint needs OpenTelemetry, which is not there ({error}); install it with "
            "pip install 'deqlm[otel]', or leave trace_endpoint empty"
        ) from error
    return OtelTracer(config.trace_endpoint, ratio=config.trace_ratio, version=this_build().version)
