"""A server under mixed load for long: nothing may grow, nothing may be left behind.

``python -m benchmarks.soak`` runs ``deqlm serve`` with the bundled model as a process of its own.
Workers score, generate, stream, fork, delete, cancel, come too late, vanish, read slowly, send
garbage and bad input; every ``--cycle-s`` they rest, and then the server must hold nothing for
anybody. Memory, threads and file descriptors at rest must not grow. It ends with an orderly stop.
"""

import argparse
import asyncio
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import soak_report
from benchmarks.soak_load import Worker
from client.aio import AsyncClient

ROOT = Path(__file__).resolve().parents[1]
_READY = re.compile(r"serving \S+ at (\S+), metrics http://(\S+)/metrics")
_BAD = re.compile("Traceback|invariant broken")
_WORKERS = 6
_WORDS_AT_ONCE = 20_000
_START_S, _REST_S, _STOP_S = 120.0, 30.0, 60.0
_GAUGES = {
    "deqlm_sessions": "sessions",
    "deqlm_slots_used": "slots_used",
    "deqlm_num_requests_running": "running",
    "deqlm_num_requests_waiting": "waiting",
}


def main(argv: list[str] | None = None) -> int:
    """Run it; the exit code is 1 where something grew or was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--cycle-s", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "shakespeare-ift")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each rest")
    parser.add_argument("--plot", type=Path, help="picture")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, served(args.model, Path(folder) / "log") as it:
        samples = asyncio.run(_soak(it, args))
        if args.out is not None:  # before the stop, which may fail
            args.out.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if args.plot is not None:
        soak_report.save(samples, args.plot)
    found = soak_report.summary(samples)
    print(json.dumps(found, indent=2))
    return 1 if found["problems"] else 0


class Served:
    """A server process and where it answers."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, metrics: str) -> None:
        self.process, self.address, self.metrics = process, address, metrics

    def sample(self) -> dict[str, Any]:
        """What the kernel and the metrics tell of it."""
        folder = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "fds": len(list((folder / "fd").iterdir())),
            **self._gauges(),
        }

    def scrape(self) -> list[str]:
        """Its metrics, line by line."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as page:
            lines: list[str] = page.read().decode("utf-8").splitlines()
        return [line for line in lines if not line.startswith("#")]

    def _gauges(self) -> dict[str, float]:
        found = {line.split("{")[0]: float(line.rpartition(" ")[2]) for line in self.scrape()}
        return {name: found[metric] for metric, name in _GAUGES.items()}


@contextmanager
def served(model: Path, log: Path) -> Iterator[Served]:
    """Runs ``deqlm serve``; it must end in an orderly way."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    command = [sys.executable, "-m", "server", f"--model=soak={model}", "--port=0"]
    command += ["--metrics-port=0", "--threads=1", "--prefix-cache=2048", "--max-running=16"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
    try:
        address, metrics = _ready(process, log)
        yield Served(process, address, metrics)
        process.send_signal(signal.SIGTERM)
        code = process.wait(_STOP_S)
        _check_end(code, log.read_text())
    finally:
        process.kill()
        process.wait()


def _check_end(code: int, text: str) -> None:
    """Looks whether a server ended in order, with nothing bad in its log. Raises RuntimeError."""
    found = _BAD.search(text)
    if code != 0 or found is not None:
        begin = len(text) if found is None else found.start()
        told = text[max(0, begin - 2000) : begin + 4000]
        raise RuntimeError(f"the server ended with {code}, and its log has: {told}")


def _ready(process: "subprocess.Popen[bytes]", log: Path) -> tuple[str, str]:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        if found := _READY.search(log.read_text()):
            return found[1], found[2]
        time.sleep(0.1)
    raise RuntimeError("the server does not start: " + log.read_text())


async def _soak(it: Served, args: argparse.Namespace) -> list[dict[str, Any]]:
    with lzma.open(ROOT / "data" / "corpus" / "train.txt.xz", "rt", encoding="utf-8") as file:
        words = file.read(1_000_000).split()
    workers = [Worker(it.address, words, args.seed * 1000 + i) for i in range(_WORKERS)]
    watcher = AsyncClient(it.address, timeout_s=60.0)
    for begin in range(0, len(words), _WORDS_AT_ONCE):
        # A tokenizer keeps thousands of words, which would look like a leak while it meets them.
        await watcher.tokenize(" ".join(words[begin : begin + _WORDS_AT_ONCE]))
    began, samples = time.monotonic(), list[dict[str, Any]]()
    while (now := time.monotonic()) - began < args.seconds:
        working = asyncio.gather(*(w.work(now + args.cycle_s) for w in workers))
        amid = (await watcher.check()).problems
        await working
        samples.append(await _at_rest(it, watcher, amid))
        samples[-1]["s"] = time.monotonic() - began
        samples[-1]["calls_done"] = _counts(workers)
        print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    for worker in workers:
        await worker.close()
    await watcher.close()
    return samples


async def _at_rest(it: Served, watcher: AsyncClient, amid: tuple[str, ...]) -> dict[str, Any]:
    """The server once all calls are over, which must not take long."""
    until = time.monotonic() + _REST_S
    found = await watcher.check()
    while found.calls > 1 and time.monotonic() < until:
        await asyncio.sleep(0.05)
        found = await watcher.check()
    found = await watcher.check()  # one more turn, in which what was cancelled ends
    sample = await asyncio.to_thread(it.sample)
    problems = [*amid, *found.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    return {**sample, "leases": found.leases, "streams": found.streams, "problems": len(problems)}


def _counts(workers: list[Worker]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for worker in workers:
        total += worker.done + worker.failed
    return dict(sorted(total.items()))


if __name__ == "__main__":
    sys.exit(main())
