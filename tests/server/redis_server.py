"""A real Redis server for a test, on a port of its own."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = shutil.which("redis-server")
WHY_NOT = "redis-server is not installed; `scripts/redis` installs it on Debian, as root"


class RedisServer:
    """Keeps what it has in a file when it stops."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Starts it; returns when it answers."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [PROGRAM, *arguments, "--save", "3600 1000000", "--appendonly", "no"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("redis-server ended")

    def stop(self) -> None:
        """Stops it; it saves first."""
        self._process.terminate()
        self._process.wait(timeout=20)
        self._process.stdout.close()

    def pause(self) -> None:
        """Has it answer nobody, with its connections open."""
        self._process.send_signal(19)  # SIGSTOP

    def go_on(self) -> None:
        """Undoes ``pause``."""
        self._process.send_signal(18)  # SIGCONT


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server; where there is none the test is skipped, but not in CI."""
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    server = RedisServer(tmp_path)
    yield server
    if server._process.poll() is None:
        server.go_on()
        server.stop()
