"""How long deqlm takes to start: its help, a client's command, a server until it is ready.

    python -m benchmarks.startup --runs 5

Wall time from before the process is started; of a server, to its line "ready", which it writes once
calls are answered. What is measured is the ``deqlm`` beside the interpreter.
"""

import argparse
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

DEQLM = Path(sys.executable).with_name("deqlm")
_READY = re.compile(r"ready after .+ at (\S+), metrics")
_PORTS = ("--port", "0", "--metrics-port", "-1")


def main() -> int:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    rows = [("`deqlm --help`", _seconds(partial(_run, "--help"), runs))]
    with _server() as (address, _):
        for command in ("info", "health"):
            act = partial(_run, command, "--address", address)
            rows.append((f"`deqlm {command}`", _seconds(act, runs)))
    rows.append(("`deqlm serve`, ready", [_until_ready() for _ in range(runs)]))
    print("| | seconds, median (least to most) |\n|---|---|")
    for name, seconds in rows:
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) |")
    return 0


def _seconds(action: Callable[[], None], runs: int) -> list[float]:
    action()  # the first one reads files from the disk
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return taken


def _run(*arguments: str) -> None:
    subprocess.run([DEQLM, *arguments], check=True, stdout=subprocess.DEVNULL)


def _until_ready() -> float:
    with _server() as (_, seconds):
        return seconds


@contextmanager
def _server() -> Iterator[tuple[str, float]]:
    """A server on the bundled models: its address, and the seconds until it was ready."""
    began = time.perf_counter()
    process = subprocess.Popen([DEQLM, "serve", *_PORTS], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := _READY.search(line):
                yield found[1], time.perf_counter() - began
                break
        else:
            raise RuntimeError("the server ended before it was ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
