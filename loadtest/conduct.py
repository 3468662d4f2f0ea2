"""Conducts a run: stages one after the other, metrics before and after each, all of it on disk."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from client.aio import AsyncClient
from client.commands._common import describe
from client.errors import DeqlmError
from client.resources import ModelInfo
from loadtest.about import write_about
from loadtest.agreement import Count, compare
from loadtest.counts import Look, Metrics, place_of
from loadtest.crew import Crew
from loadtest.errors import LoadTestError, ServerLost
from loadtest.options import Run, check_arrivals
from loadtest.records import Record, read_records
from loadtest.settings import Settings, client_of, tls_of
from loadtest.stages import Stage
from loadtest.traces import read_trace
from loadtest.watch import ANSWER_S, Watch

_SETTLE_S: Final = 5.0
"""What calls that were given up may take to end at the server."""
_SETTLE_EVERY_S: Final = 0.1

Say = Callable[[str], None]


async def conduct(settings: Settings, out: Path, say: Say) -> None:
    """Run all stages; what is measured is in the folder, however it ends.

    Raises:
        LoadTestError: it cannot be carried out, or not to its end.
        UsageError: the token cannot be read.
        InvalidArgument: a certificate cannot, or the token would go unencrypted.
    """
    client = client_of(settings.run, owner=settings.run.owner, timeout_s=ANSWER_S)
    async with client:
        model = await _model(client, settings.run)
        place = place_of(settings.run)
        metrics = None if place is None else Metrics(settings.run, place)
        if metrics is not None:
            await metrics.look()
        write_about(out, settings, model)
        watch = Watch(client, metrics, out / "server.jsonl")
        try:
            async with _crew(settings, out) as crew:
                await Conductor(settings, out, crew, metrics, watch, say).run()
        finally:
            watch.close()


async def _model(client: AsyncClient, run: Run) -> ModelInfo:
    try:
        return await client.model(run.model)
    except DeqlmError as error:
        told = describe(error, run.address, is_encrypted=tls_of(run) is not None)
        raise LoadTestError(f"{error.code.name}: {told}") from None


@contextlib.asynccontextmanager
async def _crew(settings: Settings, out: Path) -> AsyncIterator[Crew]:
    crew = Crew(settings, out)
    try:
        await crew.start()
        yield crew
    finally:
        await crew.close()


class Conductor:
    """Runs the stages of one run."""

    def __init__(
        self,
        settings: Settings,
        out: Path,
        crew: Crew,
        metrics: Metrics | None,
        watch: Watch,
        say: Say,
    ) -> None:
        self._settings, self._out, self._crew = settings, out, crew
        self._metrics, self._watch, self._say = metrics, watch, say
        self._number = 0

    async def run(self) -> None:
        """All stages. Raises LoadTestError."""
        for stage in await self._stages():
            for repeat in range(self._settings.run.repeats):
                seed = self._settings.run.seed + repeat
                await self._stage(replace(stage, repeat=repeat, seed=seed))

    async def _stages(self) -> list[Stage]:
        """Those that were asked for; measures the capacity where they depend on it."""
        load = self._settings.load
        if load.pattern == "closed":
            return [self._make(f"{n} clients", clients=n) for n in load.clients]
        if load.pattern == "trace":
            return self._of_trace()
        if load.rates:
            return [self._make(f"{rate:g}/s", rate=rate) for rate in load.rates]
        capacity = await self._capacity()
        stages = []
        for times in load.times:
            rate = capacity * times
            try:
                check_arrivals(rate, load.seconds + load.warmup_s)
            except ValueError as error:
                raise LoadTestError(str(error)) from None
            stages.append(self._make(f"{times:g} × capacity", rate=rate, times=times))
        return stages

    def _make(self, label: str, **more: Any) -> Stage:
        load = self._settings.load
        given = {
            "pattern": load.pattern,
            "seconds": load.seconds,
            "warmup_s": load.warmup_s,
            "burst": load.burst,
            "think_s": load.think_s,
            "seed": self._settings.run.seed,
        }
        return Stage(number=-1, label=label, **given | more)

    def _of_trace(self) -> list[Stage]:
        load = self._settings.load
        assert load.trace is not None, "checked with the options"
        trace = read_trace(load.trace)
        stages = []
        for speed in load.speeds:
            total_s = trace[-1].at_s / speed + 0.001
            if total_s <= load.warmup_s:
                raise LoadTestError(
                    f"load.warmup_s must be below the {total_s:.3g} s that the trace lasts at "
                    f"speed {speed:g}, got {load.warmup_s:g}"
                )
            more = {"rate": len(trace) / total_s, "times": speed}
            seconds = total_s - load.warmup_s
            stages.append(self._make(f"trace × {speed:g}", seconds=seconds, **more))
        return stages

    async def _capacity(self) -> float:
        """Requests answered per second by clients enough to fill the server."""
        clients = self._settings.load.capacity_clients
        stage = self._make("capacity", pattern="closed", clients=clients, searches=True)
        records = await self._stage(stage)
        begin, end = stage.warmup_s, stage.total_s
        answered = sum(
            begin <= one.done_s < end and (one.is_ok or one.plan.kind == "cancel")
            for one in records
        )
        if not answered:
            raise LoadTestError(
                f"no request was answered in {stage.seconds:g} s, so that there is no capacity to "
                "take multiples of; give --load.rates"
            )
        capacity = answered / stage.seconds
        self._say(f"capacity: {capacity:.3g} requests/s with {clients} clients")
        return capacity

    async def _stage(self, stage: Stage) -> list[Record]:
        """One stage, its line on disk, and its records."""
        stage = replace(stage, number=self._number)
        self._number += 1
        planned = await self._crew.plan(stage)
        requests = f"{stage.clients} clients" if stage.is_closed else f"{planned} requests"
        self._say(f"{stage.label}: {requests} in {stage.total_s:.3g} s ({stage.pattern})")
        before = None if self._metrics is None else await self._metrics.look()
        line: dict[str, Any] = {**stage.to_json(), "run_s": self._watch.seconds}
        line |= {"ended_early": None, "workers": [], "counts": None}
        try:
            line["workers"] = await self._send(stage)
            records = [one for one in read_records(self._out) if one.stage == stage.number]
            if before is not None:
                counts = await self._settled(before, records)
                line["counts"] = [count.to_json() for count in counts]
        except LoadTestError as error:
            line["ended_early"] = str(error)
            raise
        except asyncio.CancelledError:
            line["ended_early"] = "it was interrupted"
            raise
        finally:
            with (self._out / "stages.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return records

    async def _send(self, stage: Stage) -> list[dict[str, Any]]:
        """Have the stage sent, unless the server goes away meanwhile."""
        lost = asyncio.ensure_future(self._watch.until_lost())
        sending = asyncio.ensure_future(self._crew.stage(stage))
        try:
            await asyncio.wait([lost, sending], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._crew.stop()
                await sending  # what was under way is on disk then
                raise ServerLost(lost.result())
            return (await sending)[1]
        except asyncio.CancelledError:
            self._crew.stop()
            with contextlib.suppress(LoadTestError):
                await sending
            raise
        finally:
            lost.cancel()

    async def _settled(self, before: Look, records: list[Record]) -> list[Count]:
        """The counts once they agree, or once they have had time enough to."""
        assert self._metrics is not None, "there was a look before"
        until = time.monotonic() + _SETTLE_S
        while True:
            grown = (await self._metrics.look()).since(before)
            if any(value < 0 for value in grown.values()):
                raise ServerLost("the server was started anew: its counters are less than before")
            counts = compare(records, grown)
            if all(count.agrees for count in counts) or time.monotonic() > until:
                return counts
            await asyncio.sleep(_SETTLE_EVERY_S)
