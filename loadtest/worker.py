"""``python -m loadtest.worker``: a process that sends its share of the requests.

Orders come as lines of JSON on standard input, what becomes of them goes to standard output. It
ends when there is no more input, so that it never outlives the command.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from loadtest.acts import Acts
from loadtest.entry import Entry, clock
from loadtest.lag import Ticker
from loadtest.records import CUT_OFF, DROPPED, Record
from loadtest.settings import Settings, client_of, owners
from loadtest.stages import Planned, Shapes, Stage, planned, replayed
from loadtest.texts import Texts
from loadtest.traces import read_trace

_FLUSH_S: Final = 1.0
_BACK_OFF_S: Final = 0.1
"""What a client of a closed loop waits at least after a failure, as any client does."""
_LONGEST_LINE: Final = 2**22


class Sender:
    """Sends the requests of one process."""

    def __init__(self, settings: Settings, process: int, out: Path) -> None:
        """Connect, and begin the file of records."""
        self._settings, self._process = settings, process
        self._clients = [
            client_of(settings.run, owner=owner, timeout_s=settings.run.timeout_s)
            for owner in owners(settings.run)
        ]
        self._acts = Acts(
            self._clients,
            Texts.of(settings.run.text),
            model=settings.run.model,
            tokens=settings.run.tokens,
        )
        path = settings.load.trace
        self._trace = [] if path is None else read_trace(path)
        self._file = (out / f"requests-{process}.jsonl").open("w", encoding="utf-8")
        self._tasks: set[asyncio.Future[Any]] = set()
        self._sending: asyncio.Task[None] | None = None
        self._counts = dict.fromkeys(("sent", "dropped"), 0)
        self._plans: list[Planned] = []
        self._failure: BaseException | None = None

    async def connect(self) -> None:
        """Make the connections, so that no request waits for one."""
        await asyncio.gather(*(client.health() for client in self._clients))

    async def close(self) -> None:
        """Close connections and file."""
        for client in self._clients:
            await client.close()
        with contextlib.suppress(OSError):  # it has been told
            self._file.close()

    async def stage(self, stage: Stage, start: float) -> dict[str, Any]:
        """Send the requests of a stage and wait for what comes of them; counts and lags."""
        self._counts = dict.fromkeys(self._counts, 0)
        cpu_s, began = time.process_time(), time.monotonic()
        send = self._closed if stage.is_closed else self._open
        flushing = asyncio.ensure_future(self._flush())
        async with Ticker() as ticker:
            self._sending = asyncio.ensure_future(send(stage, start))
            with contextlib.suppress(asyncio.CancelledError):
                await self._sending
            while self._tasks:  # each has a deadline; those that are cancelled still clean up
                await asyncio.wait(self._tasks)
        await self._acts.forget()
        flushing.cancel()
        if self._failure is not None:
            raise self._failure
        self._file.flush()
        wall_s = time.monotonic() - began
        cpu_share = (time.process_time() - cpu_s) / wall_s
        return {**self._counts, "loop_lag_s": ticker.quantiles(), "cpu_share": cpu_share}

    def stop(self) -> None:
        """End the stage that is running; what is under way is cut off."""
        for task in (self._sending, *self._tasks):
            if task is not None:
                task.cancel()

    async def _flush(self) -> None:
        """Have what is known on disk, should this process be killed."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                self._file.flush()
            except OSError as error:
                self._failure = error
                self.stop()
                return

    def plan(self, stage: Stage) -> int:
        """Draw this process's share of an open loop's requests before it begins; how many."""
        settings = self._settings
        self._plans = []
        if not stage.is_closed:
            is_trace = stage.pattern == "trace"
            every = (
                replayed(stage, self._trace, settings.size)
                if is_trace
                else planned(stage, settings.mix, settings.size)
            )
            count = settings.run.processes
            self._plans = [one for one in every if one.number % count == self._process]
        return len(self._plans)

    async def _open(self, stage: Stage, start: float) -> None:
        """Send each request when it is due, whether or not others are answered."""
        now, run = clock(start), self._settings.run
        for plan in self._plans:
            # Also where it is late already: answers must be read meanwhile.
            await asyncio.sleep(max(0.0, plan.at_s - now()))
            if len(self._tasks) >= run.most_in_flight:
                self._drop(stage, plan, now(), "TOO_MANY_IN_FLIGHT")
            elif now() - plan.at_s >= run.timeout_s:
                self._drop(stage, plan, now(), "TOO_LATE")
            else:
                self._track(self._request(stage, plan, now))

    def _drop(self, stage: Stage, plan: Planned, now_s: float, reason: str) -> None:
        self._counts["dropped"] += 1
        record = Record(stage=stage.number, process=self._process, plan=plan, done_s=now_s)
        record.status, record.reason = DROPPED, reason
        self._file.write(record.to_line())

    def _track(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._untrack)

    def _untrack(self, task: asyncio.Future[Any]) -> None:
        """A record that cannot be written, above all for want of room on disk, ends the stage."""
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            self.stop()

    async def _request(self, stage: Stage, plan: Planned, now: Callable[[], float]) -> Record:
        """One request, from its sending to its record."""
        record = Record(stage=stage.number, process=self._process, plan=plan, sent_s=now())
        self._counts["sent"] += 1
        try:
            await self._acts.act(Entry(record, now, self._settings.run.timeout_s))
        except asyncio.CancelledError:
            record.status = CUT_OFF
        record.done_s = record.done_s or now()
        self._file.write(record.to_line())
        return record

    async def _closed(self, stage: Stage, start: float) -> None:
        """Have clients send, each when its last request is answered."""
        now = clock(start)
        await asyncio.sleep(max(0.0, -now()))
        count = self._settings.run.processes
        for number in range(self._process, stage.clients, count):
            self._track(self._client(stage, number, now))

    async def _client(self, stage: Stage, number: int, now: Callable[[], float]) -> None:
        settings = self._settings
        seed = f"{stage.seed}/{stage.number}/client {number}"
        shapes, count = Shapes(settings.mix, settings.size, seed), 0
        while (at_s := now()) < stage.total_s:
            plan = shapes.draw(number + count * stage.clients, at_s)
            record = await self._request(stage, plan, now)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return
            count += 1
            await asyncio.sleep(stage.think_s if record.is_ok else max(stage.think_s, _BACK_OFF_S))


async def work() -> None:
    """Follow orders until there are no more."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=_LONGEST_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    first = json.loads(await orders.readline())
    sender = Sender(Settings.from_json(first["settings"]), first["process"], Path(first["out"]))
    await sender.connect()
    _answer({"ready": True})
    running: asyncio.Task[None] | None = None
    while line := await orders.readline():
        order = json.loads(line)
        if order["order"] == "plan":
            _answer({"planned": sender.plan(Stage(**order["stage"]))})
        elif order["order"] == "start":
            stage, start = Stage(**order["stage"]), order["start"]
            running = asyncio.ensure_future(_report(sender, stage, start))
        else:
            sender.stop()
    sender.stop()
    if running is not None:
        await running
    await sender.close()


async def _report(sender: Sender, stage: Stage, start: float) -> None:
    try:
        _answer({"done": await sender.stage(stage, start)})
    except Exception as error:
        _answer({"error": _told(error)})


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _answer(value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the command is gone: standard input ends, too
        print(json.dumps(value), flush=True)


def main() -> None:
    """Work; what goes wrong is told as an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what an interrupt ends
    try:
        asyncio.run(work())
    except Exception as error:
        _answer({"error": _told(error)})
        sys.stdout.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
