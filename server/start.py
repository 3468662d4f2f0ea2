"""What a server takes from outside before it begins: ports, store, key, tracer; or why not."""

from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from server.config import METRICS_OFF, ServerConfig
from server.metrics_endpoint import MetricsEndpoint
from server.security.guarding import Guarding
from server.store.base import Head, SessionStore, StoreError, StoreOpenError
from server.store.opening import open_store
from server.tracing.current import Tracer

_LEAST_KEY_BYTES = 16


class StartError(Exception):
    """The server cannot start; the message says what to change."""


def host_port(host: str, port: int) -> str:
    """Host and port as one name; the colons of IPv6 need brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_key(path: str) -> bytes | None:
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


def read_store(config: ServerConfig) -> tuple[SessionStore, list[Head]]:
    """Open the session store and read what sessions it has, not what they hold; blocks.

    Raises:
        StartError: it cannot be opened or read.
    """
    try:
        store = open_store(
            config.session_store, sync=config.store_sync, timeout_s=config.store_timeout_s
        )
    except StoreOpenError as error:
        raise _no_store(error) from error
    try:
        return store, list(store.heads())
    except StoreError as error:
        store.close()
        raise _no_store(error) from error


def _no_store(error: Exception) -> StartError:
    return StartError(f"{error}; choose another with --session-store")


def make_tracer(config: ServerConfig, version: str) -> Tracer | None:
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
    return OtelTracer(config.trace_endpoint, ratio=config.trace_ratio, version=version)


def bind(server: grpc.aio.Server, guarding: Guarding, config: ServerConfig) -> int:
    """Have a server listen; returns the port.

    Raises:
        StartError: it cannot.
    """
    address = host_port(config.host, config.port)
    try:
        return guarding.add_port(server, address)
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {address}: the port is in use or the host is not this "
            "machine's; choose others with --host and --port (0 takes a free port)"
        ) from error


def open_metrics(
    registry: CollectorRegistry, guarding: Guarding, config: ServerConfig
) -> MetricsEndpoint | None:
    """Serve the page of metrics, unless it is off.

    Raises:
        StartError: its port cannot be had.
    """
    host, port = config.metrics_host, config.metrics_port
    if port == METRICS_OFF:
        return None
    try:
        return MetricsEndpoint(
            registry,
            host=host,
            port=port,
            allow=guarding.allow_metrics,
            context=guarding.http_context,
        )
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port} for metrics: {error.strerror}; choose others with "
            "--metrics-host and --metrics-port (0 takes a free port, -1 turns metrics off)"
        ) from error
