"""The page of metrics over HTTP, and who may see it."""

import contextlib
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from server.security.errors import SecurityError, Unauthenticated

_log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""What a client gets to say the next bit of what it wants."""

_LONGEST_S = 20.0
"""What it gets for all of it, so that no room is held by a byte now and then."""

_MOST_CONNECTIONS = 32
"""Threads that answer at once."""

_MOST_OF_AN_ADDRESS = 8
"""Of these, for one address: others still find room."""

Allow = Callable[[str | None], None]
"""Raises SecurityError unless the header ``Authorization`` shows somebody who may."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    context: Callable[[], ssl.SSLContext] | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread, if there are not too many; else the connection ends."""
        if not self._take(client_address[0]):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._give_back(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread's part of it."""
        end = threading.Timer(_LONGEST_S, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._give_back(client_address[0])

    def _take(self, host: str) -> bool:
        with self._lock:
            if self._held.total() >= _MOST_CONNECTIONS or self._held[host] >= _MOST_OF_AN_ADDRESS:
                return False
            self._held[host] += 1
            return True

    def _give_back(self, host: str) -> None:
        with self._lock:
            self._held[host] -= 1
            if not self._held[host]:
                del self._held[host]

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; its thread, which has patience, does the handshake."""
        connection, address = super().get_request()
        if self.context is None:
            return connection, address
        return self.context().wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        ), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What somebody sends that is not HTTP is no concern of ours."""
        _log.debug("a connection for metrics failed", exc_info=True)


def _cut(connection: socket.socket) -> None:
    """End a connection under whoever reads it; TLS, which is not for two threads, is not asked."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads that somebody has looked."""


class MetricsEndpoint:
    """Serves a registry as text over HTTP."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int,
        allow: Allow | None = None,
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Begin to serve.

        Args:
            registry: what to show.
            host: address to listen on.
            port: TCP port; 0 takes a free one.
            allow: who may see it; None for everybody.
            context: what a new connection is encrypted with; None for plain HTTP.

        Raises:
            OSError: the port is in use, or the host is not this machine's.
        """
        app = _forgiving(make_wsgi_app(registry))
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(
            host, port, app if allow is None else _asking(app, allow), kind, _Handler
        )
        self._server.context = context
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics")
        self._thread.daemon = True
        self._thread.start()

    @property
    def port(self) -> int:
        """TCP port."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving; blocks until the thread is gone."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _forgiving(app: Any) -> Any:
    """The application, for those as well whose wishes for a format nobody can read."""

    def forgiving(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            answer: Iterable[bytes] = app(environ, start_response)
        except Exception:
            if environ.pop("HTTP_ACCEPT", None) is None:
                raise
            answer = app(environ, start_response)
        return answer

    return forgiving


def _asking(app: Any, allow: Allow) -> Any:
    """The application for those that ``allow`` lets through."""

    def asking(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            allow(environ.get("HTTP_AUTHORIZATION"))
        except SecurityError as error:
            is_unknown = isinstance(error, Unauthenticated)
            headers = [("Content-Type", "text/plain; charset=utf-8")]
            if is_unknown:
                headers.append(("WWW-Authenticate", "Bearer"))
            start_response("401 Unauthorized" if is_unknown else "403 Forbidden", headers)
            return [f"{error}\n".encode()]
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return asking
