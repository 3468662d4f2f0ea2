"""What a session store costs a caller: a call of one token on a session, over gRPC, by store.

``python -m benchmarks.session_latency FOLDER`` starts a server for each store, and Redis where it
is installed; their calls take turns, so that whatever else the machine does meets all of them.
"""

import contextlib
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from client._sync_session import Session
from client.sync import Client

_ROUNDS, _WARM_UP = 200, 20
_READY = re.compile(r"serving .* at (\S+), metrics")


def main() -> None:
    """Print a table."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    stores = {
        "memory": ("memory",),
        "SQLite, `normal`": (f"sqlite:{folder / 'normal.db'}",),
        "SQLite, `full`": (f"sqlite:{folder / 'full.db'}", "--store-sync", "full"),
    }
    with contextlib.ExitStack() as stack:
        if shutil.which("redis-server"):
            stores["Redis"] = (stack.enter_context(_redis(folder)),)
        sessions = {
            name: stack.enter_context(_session(options)) for name, options in stores.items()
        }
        taken = _measure(sessions)
    print("| store | median | 95th percentile |\n|---|---|---|")
    for name, times in taken.items():
        high = statistics.quantiles(times, n=20)[-1]
        print(f"| {name} | {statistics.median(times):.1f} ms | {high:.1f} ms |")


def _measure(sessions: dict[str, Session]) -> dict[str, list[float]]:
    """Milliseconds of each call."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    order, shuffled = list(sessions), random.Random(0)
    for index in range(_WARM_UP + _ROUNDS):
        shuffled.shuffle(order)
        token = [shuffled.randrange(2, 1000)]
        for name in order:
            begun = time.perf_counter()
            sessions[name].score(token)
            if index >= _WARM_UP:
                taken[name].append(1e3 * (time.perf_counter() - begun))
    return taken


@contextlib.contextmanager
def _session(options: tuple[str, ...]) -> Iterator[Session]:
    """A session on a server with a store of its own."""
    command = [
        *(sys.executable, "-m", "cli", "serve", "--port", "0", "--metrics-port", "-1"),
        *("--model", "one=models/shakespeare-ift"),
        *("--session-store", *options),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, map(_READY.search, process.stderr)))
            with Client(found[1]) as client, client.session() as session:
                yield session
        finally:
            process.terminate()


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """URL of a Redis server that writes nothing to disk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if "Ready to accept connections" in line)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
