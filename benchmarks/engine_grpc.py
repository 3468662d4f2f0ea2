"""Generation through gRPC against the engine in process: the same work, in turns.

The server is a process of its own; one client process drives all streams by asyncio. The client
shares the machine's cores with the server, as the engine in process does not with anybody.
"""

import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.engine_bench import Bench, Result, in_turns, places, spread
from benchmarks.engine_drive import Driver
from benchmarks.engine_settings import Setting
from benchmarks.engine_speed import rate, steady_rate
from benchmarks.models import ROOT
from client.aio import AsyncClient
from client.options import SamplingOptions, StopOptions
from server.engine.limits import EngineLimits

_READY = re.compile(r"serving \S+ at (\S+?),? ")


def through_grpc(bench: Bench) -> Result:
    """Tokens per second of many streams, by way and setting."""
    return {setting.name: _compare(bench, setting) for setting in bench.settings}


def _compare(bench: Bench, setting: Setting) -> Result:
    streams = bench.sizes.streams
    texts = bench.texts(streams, bench.config.mem_len)
    with (
        bench.driver(setting, max_running=places(streams)) as driver,
        _server(bench, setting, driver.limits) as address,
        asyncio.Runner() as runner,
    ):
        client = AsyncClient(address, timeout_s=None)
        ours = driver.sessions(texts)
        theirs = runner.run(_sessions(client, texts))
        ways: dict[str, Callable[[int], Result]] = {
            "in process": partial(_in_process, driver, ours, bench.sizes.drawn),
            "gRPC": lambda rep: runner.run(_by_client(client, theirs, bench.sizes.drawn, rep)),
        }
        turns = in_turns(ways, bench.sizes.reps, bench.tell)
        runner.run(client.close())
    rates = {name: spread([turn["tokens_per_s"] for turn in reps]) for name, reps in turns.items()}
    return {"streams": streams, "tokens_per_s": rates}


def _flags(setting: Setting, limits: EngineLimits) -> list[str]:
    """What has the server run an engine as the one in process."""
    flags = {
        "dtype": str(setting.dtype).removeprefix("torch."),
        "early-dtype": setting.early,
        "tol": setting.tol,
        "default-max-nfe": setting.max_nfe,
        "warm-start": "auto" if setting.warm else "off",
        "threads": torch.get_num_threads(),
        **{
            field.name.replace("_", "-"): getattr(limits, field.name)
            for field in dataclasses.fields(limits)
        },
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@contextmanager
def _server(bench: Bench, setting: Setting, limits: EngineLimits) -> Iterator[str]:
    """Runs ``deqlm serve``; gives its address once it is ready."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    command = [sys.executable, "-m", "server", f"--model=bench={bench.folder}", "--port=0"]
    command += ["--metrics-port=-1", f"--device={bench.device}"]
    command += _flags(setting, limits)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Its log must be read to the end, or it stops when the pipe is full.
        rest = threading.Thread(target=process.stderr.read)
        try:
            address = _address(process.stderr)
            rest.start()
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            if rest.ident is not None:
                rest.join()


def _address(log: Iterable[str]) -> str:
    """Where a server listens, once it says that it is ready."""
    lines: list[str] = []
    for line in log:
        lines.append(line)
        if ready := _READY.search(line):
            return ready[1]
    raise RuntimeError("the server ended: " + "".join(lines))


def _in_process(driver: Driver, sessions: list[str], count: int, rep: int) -> Result:
    forks = [driver.fork(session) for session in sessions]
    jobs = [driver.generate(count, seed=_seed(rep, i), session=s) for i, s in enumerate(forks)]
    for job in jobs:
        job.wait()
    driver.delete(forks)
    return {"tokens_per_s": steady_rate(jobs)}


async def _sessions(client: AsyncClient, texts: list[list[int]]) -> list[str]:
    async def made(text: list[int]) -> str:
        info = await client.create_session()
        await client.score(text, session=info.session_id, include_tokens=False)
        return info.session_id

    return list(await asyncio.gather(*map(made, texts)))


async def _by_client(client: AsyncClient, sessions: list[str], count: int, rep: int) -> Result:
    forks = [(await client.fork_session(session)).session_id for session in sessions]

    async def drawn_at(i: int, session: str) -> list[float]:
        generation = client.generate(
            session=session,
            sampling=SamplingOptions(temperature=1.0, seed=_seed(rep, i)),
            stop=StopOptions(max_tokens=count, ignore_eos=True),
        )
        return [time.perf_counter() async for _ in generation]

    times = await asyncio.gather(*(drawn_at(i, session) for i, session in enumerate(forks)))
    for session in forks:
        await client.delete_session(session, wait_if_busy=True)
    return {"tokens_per_s": rate(list(times))}


def _seed(rep: int, stream: int) -> int:
    return 1000 * rep + stream
