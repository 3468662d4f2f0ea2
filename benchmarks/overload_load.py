"""One process of callers for the overload benchmark: sends Score calls, tells what became of them.

It runs beside the server, so it says what it costs (CPU time) and how late its own event loop was:
a call's time here has the loop's lag in it.
"""

import argparse
import asyncio
import json
import lzma
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from deqlm.v1 import common_pb2, scoring_pb2, scoring_pb2_grpc

TEXT = Path(__file__).resolve().parents[1] / "data" / "corpus" / "test.txt.xz"
WORDS = (10, 40)
"""Of a call, least and most."""
OWNERS = 8
_BEAT_S = 0.005
_PATIENCE_S = 60.0
"""A closed loop whose calls could be refused would measure how fast it can ask again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call.

    Attributes:
        code: its status.
        seconds: from its sending to its end.
        late_s: that it was sent behind the instant it was meant for.
    """

    code: str
    seconds: float
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one process of callers has seen.

    Attributes:
        seconds: that calls were sent.
        outcomes: all calls.
        lags_s: of its event loop, one every few milliseconds.
        cpu_s: of CPU time that it took.
    """

    seconds: float
    outcomes: tuple[Outcome, ...]
    lags_s: tuple[float, ...]
    cpu_s: float

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Told":
        """The inverse."""
        told = json.loads(text)
        outcomes = tuple(Outcome(**outcome) for outcome in told["outcomes"])
        return Told(told["seconds"], outcomes, tuple(told["lags_s"]), told["cpu_s"])


class Callers:
    """Send calls to a server, each with a deadline."""

    def __init__(self, address: str, *, seed: int, deadline_s: float) -> None:
        """Takes where to send what, and how long calls may take."""
        with lzma.open(TEXT, "rt", encoding="utf-8") as file:
            self._words = file.read().split()
        self._random = random.Random(seed)
        self._deadline_s = deadline_s
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = scoring_pb2_grpc.ScoringServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def call(
        self, intended: float | None = None, *, deadline_s: float | None = None
    ) -> Outcome:
        """One call; it has its own deadline or that of all."""
        size = self._random.randint(*WORDS)
        begin = self._random.randrange(len(self._words) - size)
        text = " ".join(self._words[begin : begin + size])
        request = scoring_pb2.ScoreRequest(input=common_pb2.Input(text=text))
        owner = (("deqlm-owner", f"owner {self._random.randrange(OWNERS)}"),)
        begun, code = time.perf_counter(), "OK"
        try:
            await self._stub.Score(request, timeout=deadline_s or self._deadline_s, metadata=owner)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        late_s = 0.0 if intended is None else begun - intended
        return Outcome(code, time.perf_counter() - begun, late_s)

    async def closed(self, workers: int, seconds: float) -> list[Outcome]:
        """Of clients that each wait for their answers, however long that takes."""
        end = time.perf_counter() + seconds

        async def work() -> list[Outcome]:
            outcomes = []
            while time.perf_counter() < end:
                outcomes.append(await self.call(deadline_s=_PATIENCE_S))
            return outcomes

        return [o for some in await asyncio.gather(*(work() for _ in range(workers))) for o in some]

    async def open(self, rate: float, seconds: float) -> list[Outcome]:
        """Of calls that arrive by a Poisson process of so many in a second."""
        calls, at = [], time.perf_counter()
        end = at + seconds
        while (at := at + self._random.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            calls.append(asyncio.ensure_future(self.call(at)))
        return list(await asyncio.gather(*calls))


async def _beat(lags: list[float]) -> None:
    """Notes by how much more than asked the event loop sleeps."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(_BEAT_S)
        lags.append(max(0.0, time.perf_counter() - begun - _BEAT_S))


async def _run(args: argparse.Namespace) -> Told:
    callers = Callers(args.address, seed=args.seed, deadline_s=args.deadline_s)
    lags: list[float] = []
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    beating = asyncio.ensure_future(_beat(lags))
    cpu_s, begun = _cpu_s(), time.perf_counter()
    if args.rate:
        outcomes = await callers.open(args.rate, args.seconds)
    else:
        outcomes = await callers.closed(args.workers, args.seconds)
    cpu_s = _cpu_s() - cpu_s
    seconds = args.seconds if args.rate else time.perf_counter() - begun
    beating.cancel()
    await callers.close()
    return Told(seconds, tuple(outcomes), tuple(lags), cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: list[str] | None = None) -> int:
    """Say ``ready``, wait for a line, send calls, print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second; 0: closed loop")
    parser.add_argument("--workers", type=int, default=16, help="of the closed loop")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    print(asyncio.run(_run(parser.parse_args(argv))).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
