"""A real server on tiny models, in a thread of the tests' process."""

import asyncio
import logging
import threading
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

T = TypeVar("T")


class _Broken(logging.Handler):
    """Keeps what a server finds broken, also when it stops, where nobody is told but the log."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__(logging.ERROR)
        self._thread = thread
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if record.thread == self._thread.ident and told.startswith("invariant broken"):
            self.found.append(told)


class LiveServer:
    """A server with models ``pieces`` (the default) and ``words``; takes fields of ServerConfig."""

    def __init__(self, folder: Path, *, load: Any = None, wait: bool = True, **changes: Any):
        # Only now, as tests that need no server should not wait for torch.
        from server.app import Server
        from server.config import ServerConfig
        from server.loading import load_engine

        self.folder = folder
        config = ServerConfig(
            **{
                "model": (f"pieces={folder / 'pieces'}", f"words={folder / 'words'}"),
                "port": 0,
                "metrics_port": 0,
                "max_batch_tokens": 64,
                "max_running": 8,
                "max_sessions": 16,
                "window": 8,
                "grace_s": 5.0,
                # Tests score the same texts again and again, and look at what that takes.
                "prefix_cache": 0,
                **changes,
            }
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="live-server")
        self._thread.start()
        self.broken = _Broken(self._thread)
        logging.getLogger("server").addHandler(self.broken)
        self.server = Server(config, load=load or load_engine)
        try:
            self.run(self.server.start())
            if wait:
                self.run(self.server.wait_ready())
        except BaseException:
            self._end_loop()
            raise
        self.address = self.server.address
        self.metrics_address = f"127.0.0.1:{self.server.metrics_port}"
        self.channel = grpc.insecure_channel(self.address)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the server's event loop do something, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def begin(self, work: Coroutine[Any, Any, T]) -> Any:
        """Have the server's event loop do something; a future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def engine(self, name: str = "pieces") -> Any:
        """An engine of the server."""
        return self.server._registry.engine(name)

    def metrics(self) -> dict[str, float]:
        """Samples of the metrics endpoint: name with labels, value."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as page:
            lines = page.read().decode("utf-8").splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def check(self) -> None:
        """Everything adds up, and where no call is left nothing is held for one."""
        guard = self.server._guard
        at_rest = self.run(guard.wait_idle(5.0))
        self.run(self.server._persistence.settle(30.0))
        for engine in self.server._engines:
            engine.check().result(60)  # a turn, in which what was cancelled ends
        found = self.run(self.server.check())
        assert found.problems == ()
        if at_rest and not (guard.running or self.server._attempts):
            assert (found.calls, found.leases, found.streams) == (0, 0, 0)
            for engine in self.server._engines:
                state = engine.snapshot()
                assert (state.running_jobs, state.waiting_jobs) == (0, 0)

    def close(self) -> None:
        """Stop it, after a look at whether everything adds up."""
        self.channel.close()
        try:
            if self.server._registry.is_ready:
                self.check()
        finally:
            self._close()

    def _close(self) -> None:
        self.run(self.server.stop(grace_s=0.0))
        self._end_loop()
        assert self.broken.found == []

    def _end_loop(self) -> None:
        logging.getLogger("server").removeHandler(self.broken)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints ``pieces`` and ``words``."""
    from tests.server.tiny import save_pieces, save_words

    folder = tmp_path_factory.mktemp("models")
    save_pieces(folder / "pieces")
    save_words(folder / "words")
    return folder


@pytest.fixture(scope="session")
def live_server(tiny_models: Path) -> Iterator[LiveServer]:
    """One server for all tests that leave it as it was."""
    server = LiveServer(tiny_models)
    yield server
    server.close()


@pytest.fixture
def make_server(tiny_models: Path) -> Iterator[Callable[..., LiveServer]]:
    """Makes servers with other configurations; they end with the test."""
    servers: list[LiveServer] = []

    def make(**changes: Any) -> LiveServer:
        servers.append(LiveServer(tiny_models, **changes))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves on the shared server goes, and then the server's books add up.

    A session left behind would expire within another test, which might be counting.
    """
    yield
    if "live_server" in request.fixturenames:
        from tests.server.calls import Stubs

        live_server = request.getfixturevalue("live_server")
        for owner in ("ann", "bob"):
            stubs = Stubs(live_server.channel, owner=owner)
            for view in stubs.list().sessions:
                stubs.delete(view.session_id)
        live_server.check()
