"""A server beyond its capacity: what it still does in time, and how it refuses the rest.

``python -m benchmarks.overload`` runs ``deqlm serve`` as a process of its own and callers as two
more. A closed loop finds how many Score calls the server does in a second; then it is sent that
many times 0.5, 1, 2 and 3, open loop: calls arrive by a Poisson process whether or not others are
done, each with a deadline. Loads come in another order in each round. Goodput is calls answered
before their deadline, in a second.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overload_load import OWNERS, WORDS, Told
from benchmarks.overload_report import ServerTold, pooled, refused_between, summary
from benchmarks.soak import ROOT, Served, served

_LOADS = (0.5, 1.0, 2.0, 3.0)
_PROCESSES = 2
"""Of callers: fewer would be late themselves."""
_WORKERS = 16
"""Of each process, that find the capacity: enough to fill every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Starts processes of callers.

    Attributes:
        address: of the server.
        deadline_s: of each call.
    """

    address: str
    deadline_s: float

    def run(self, seconds: float, *, rate: float = 0.0, seed: int) -> list[Told]:
        """Calls at so many a second, or of a closed loop, from all processes at once."""
        command = [sys.executable, "-m", "benchmarks.overload_load", self.address]
        command += [f"--seconds={seconds}", f"--deadline-s={self.deadline_s}"]
        command += [f"--rate={rate / _PROCESSES}"] if rate else [f"--workers={_WORKERS}"]
        processes = [
            subprocess.Popen(
                [*command, f"--seed={seed * _PROCESSES + i}"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(_PROCESSES)
        ]
        try:
            return _told(processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _told(processes: Sequence["subprocess.Popen[str]"]) -> list[Told]:
    """What processes tell that begin together."""
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [Told.from_json(process.communicate()[0]) for process in processes]


def _load(it: Served, callers: Callers, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Figures of one load."""
    before = ServerTold.read(it.scrape())
    told = callers.run(seconds, rate=rate, seed=seed)
    after = ServerTold.read(it.scrape())
    return {
        **summary(told, seconds, callers.deadline_s),
        "rss_mib": [before.rss_mib, after.rss_mib],
        "cores_of_server": (after.cpu_s - before.cpu_s) / (after.at - before.at),
        "refused_by_server_s": refused_between(before.refusals, after.refusals),
    }


def _measure(it: Served, args: argparse.Namespace) -> dict[str, Any]:
    callers = Callers(address=it.address, deadline_s=args.deadline_s)
    callers.run(args.seconds / 3, seed=args.seed)
    closed = callers.run(args.seconds, seed=args.seed + 1)
    took = max(told.seconds for told in closed)
    capacity = sum(o.code == "OK" for told in closed for o in told.outcomes) / took
    order, rounds = random.Random(args.seed), list[dict[str, Any]]()
    for number in range(args.rounds):
        loads = order.sample(args.loads, len(args.loads))
        figures = {}
        for times in loads:
            seed = args.seed + 100 * (number + 1) + round(10 * times)
            figures[f"{times:g}"] = _load(it, callers, capacity * times, args.seconds, seed)
            print(times, json.dumps(figures[f"{times:g}"]), file=sys.stderr, flush=True)
        rounds.append({f"{times:g}": figures[f"{times:g}"] for times in args.loads})
    return {"capacity_per_s": capacity, **pooled(rounds), "rounds": rounds}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deadline-s", type=float, default=2.0)
    parser.add_argument("--loads", type=float, nargs="+", default=_LOADS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "shakespeare-ift")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, served(args.model, Path(folder) / "log") as it:
        result = _measure(it, args)
    settings = {"seconds": args.seconds, "deadline_s": args.deadline_s, "words": WORDS}
    result["settings"] = settings | {"owners": OWNERS, "processes": _PROCESSES, "seed": args.seed}
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
