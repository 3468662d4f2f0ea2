"""A server process that tests kill, and start again on the same port and store."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc

from tests.server.calls import Stubs

ROOT = Path(__file__).resolve().parents[2]
BACK_OFF_S = 0.05
"""As any client waits before it tries again: calls that spin would starve the server's start."""
_RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,  # the call that the client gave up still holds the session
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # on a machine that has other things to do
)
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]
_METRIC = re.compile(r"^(\w+)\{.*\} (\S+)$", re.MULTILINE)


def is_retried(error: grpc.RpcError) -> bool:
    """Whether a client sends its call again: it met the kill, and no defect of the server's.

    gRPC itself may call a connection that is cut INTERNAL or UNKNOWN; then nothing came from the
    server, which ends a call with metadata whatever happens.
    """
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return not error.trailing_metadata() and "Unexpected <class" not in error.details()
    return error.code() in _RETRIED


class Killed:
    """``deqlm serve`` on a port that stays, with a store that stays."""

    def __init__(self, folder: Path, model: Path, *options: str, store: str = "") -> None:
        """Starts it.

        Args:
            folder: for the store and the log.
            model: its checkpoint.
            options: more of them.
            store: where sessions are; a file in the folder without one.
        """
        self.port, self._metrics_port = _free_port(), _free_port()
        self._arguments = [
            *("-m", "cli", "serve", "--model", f"tiny={model}", "--port", str(self.port)),
            *("--metrics-port", str(self._metrics_port), "--threads", "1"),
            *("--early-dtype", "none", "--max-batch-tokens", "16", "--max-running", "4"),
            *("--window", "4", "--store-timeout-s", "30"),
            *("--session-store", store or f"sqlite:{folder / 'sessions.db'}", *options),
        ]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])
        }
        self.log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Starts it, and does not wait."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._arguments], cwd=ROOT, env=self._environment, stderr=log
            )

    def wait_ready(self) -> None:
        """Waits until it answers."""
        with self.channel() as channel:
            while True:
                assert self.process.poll() is None, self.log_path.read_text()[-3000:]
                try:
                    return Stubs(channel).list(page_size=1) and None
                except grpc.RpcError as error:
                    assert is_retried(error), error
                    time.sleep(BACK_OFF_S)

    def channel(self) -> grpc.Channel:
        """To it, whichever process it is now."""
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=OPTIONS)

    def counted(self, metric: str) -> int:
        """A counter of this process, summed over its labels; 0 while it does not tell."""
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self._metrics_port}/metrics"
            text = urllib.request.urlopen(url, timeout=60).read().decode()
            return int(sum(float(value) for name, value in _METRIC.findall(text) if name == metric))
        return 0

    def kill(self) -> None:
        """Kills it as a machine would that has no memory left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Stops it in an orderly way; its exit code. Then it looks whether everything adds up."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        log = self.log_path.read_text()
        assert "invariant broken" not in log
        assert "Traceback" not in log, log[max(0, log.index("Traceback") - 1000) :][:5000]
        return code


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
