"""A server beyond its capacity: what it still does in time, and how it refuses the rest.

``python -m benchmarks.overload`` runs ``deqlm serve`` as a process of its own, finds by a closed
loop how many Score calls it does in a second, and then sends that many times 0.5, 1, 2 and 3, open
loop: calls arrive by a Poisson process whether or not others are done, each with a deadline.
Goodput is calls answered before their deadline, in a second.
"""

import argparse
import asyncio
import json
import lzma
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.soak import ROOT, Served, served
from deqlm.v1 import common_pb2, scoring_pb2, scoring_pb2_grpc

_WORDS = (10, 40)
_LOADS = (0.5, 1.0, 2.0, 3.0)
_OWNERS = 8
_CLIENTS = 32
"""That find the capacity: enough to fill every call, few enough to be in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call: its status, seconds from its sending, and seconds that it was sent late."""

    code: str
    seconds: float
    late_s: float


class Load:
    """Sends Score calls to a server."""

    def __init__(self, address: str, words: list[str], *, seed: int, deadline_s: float) -> None:
        """Takes where to send what, and how long calls may take."""
        self._words, self._random = words, random.Random(seed)
        self._deadline_s = deadline_s
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = scoring_pb2_grpc.ScoringServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def call(self, intended: float | None = None) -> Outcome:
        """One call."""
        size = self._random.randint(*_WORDS)
        begin = self._random.randrange(len(self._words) - size)
        text = " ".join(self._words[begin : begin + size])
        request = scoring_pb2.ScoreRequest(input=common_pb2.Input(text=text))
        owner = (("deqlm-owner", f"owner {self._random.randrange(_OWNERS)}"),)
        begun, code = time.perf_counter(), "OK"
        try:
            await self._stub.Score(request, timeout=self._deadline_s, metadata=owner)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        late_s = 0.0 if intended is None else begun - intended
        return Outcome(code, time.perf_counter() - begun, late_s)

    async def closed(self, workers: int, seconds: float) -> float:
        """Calls per second of clients that each wait for their answers."""
        begun = time.perf_counter()

        async def work() -> int:
            done = 0
            while time.perf_counter() - begun < seconds:
                done += (await self.call()).code == "OK"
            return done

        total = sum(await asyncio.gather(*(work() for _ in range(workers))))
        return total / (time.perf_counter() - begun)

    async def open(self, rate: float, seconds: float) -> list[Outcome]:
        """Calls that arrive by a Poisson process of so many in a second."""
        calls, at = [], time.perf_counter()
        end = at + seconds
        while (at := at + self._random.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            calls.append(asyncio.ensure_future(self.call(at)))
        return list(await asyncio.gather(*calls))


def summary(outcomes: list[Outcome], seconds: float, deadline_s: float) -> dict[str, Any]:
    """Figures of one load."""
    good = [o.seconds for o in outcomes if o.code == "OK" and o.seconds <= deadline_s]
    refused = [o.seconds for o in outcomes if o.code == "RESOURCE_EXHAUSTED"]
    answered = sum(o.code == "OK" for o in outcomes)
    late = sum(o.code == "DEADLINE_EXCEEDED" for o in outcomes) + answered - len(good)
    accepted = len(good) + late
    return {
        "calls": len(outcomes),
        "goodput_per_s": len(good) / seconds,
        "refused": len(refused),
        "late": late,
        "accepted_in_time": len(good) / accepted if accepted else None,
        "other": len(outcomes) - len(good) - len(refused) - late,
        "answered_s": _percentiles(good),
        "refused_s": _percentiles(refused),
        "sent_late_s": _percentiles([o.late_s for o in outcomes]),
    }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ranked = sorted(values)
    return {f"p{p}": ranked[min(len(ranked) - 1, len(ranked) * p // 100)] for p in (50, 90, 99)}


async def _measure(it: Served, args: argparse.Namespace) -> dict[str, Any]:
    with lzma.open(ROOT / "data" / "corpus" / "test.txt.xz", "rt", encoding="utf-8") as file:
        words = file.read().split()
    load = Load(it.address, words, seed=args.seed, deadline_s=args.deadline_s)
    await load.closed(_CLIENTS, args.seconds / 3)
    capacity = await load.closed(_CLIENTS, args.seconds)
    result: dict[str, Any] = {"capacity_per_s": capacity, "loads": {}}
    for times in args.loads:
        before = await asyncio.to_thread(it.sample)
        outcomes = await load.open(capacity * times, args.seconds)
        figures = summary(outcomes, args.seconds, args.deadline_s)
        after = await asyncio.to_thread(it.sample)
        figures["rss_mib"] = [before["rss_mib"], after["rss_mib"]]
        result["loads"][f"{times:g}"] = figures
        print(times, json.dumps(figures), file=sys.stderr, flush=True)
    await load.close()
    most = max(figures["goodput_per_s"] for figures in result["loads"].values())
    last = result["loads"][f"{args.loads[-1]:g}"]
    result["goodput_kept"] = last["goodput_per_s"] / most
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--deadline-s", type=float, default=2.0)
    parser.add_argument("--loads", type=float, nargs="+", default=_LOADS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "shakespeare-ift")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, served(args.model, Path(folder) / "log") as it:
        result = asyncio.run(_measure(it, args))
    result["settings"] = {"seconds": args.seconds, "deadline_s": args.deadline_s, "words": _WORDS}
    print(json.dumps(result, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
