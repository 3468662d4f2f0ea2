"""The engine's speed, side by side with a plain baseline: tables, and all numbers as JSON.

``python -m benchmarks.engine`` measures everything, ``--only generate,call`` those sections
(``generate`` is ``generate-1`` and ``generate-16``), ``--quick`` a little of each, to see that it
runs. Sections that are not measured keep what the JSON has of them. The models are those of
``benchmarks.models``; run that first to have them start warm.
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import engine_tables
from benchmarks.engine_bench import QUICK, Bench, Result, Sizes
from benchmarks.engine_call import calls
from benchmarks.engine_grpc import through_grpc
from benchmarks.engine_profile import profiles
from benchmarks.engine_settings import DEFAULT, SETTINGS
from benchmarks.engine_shared import gaps, growth, waits
from benchmarks.engine_speed import generation, scoring
from benchmarks.engine_trained import trained
from benchmarks.models import ROOT, trained_models
from benchmarks.shapes import CACHE, checkpoint_folder
from benchmarks.training_runs import machine


def sections(sizes: Sizes) -> dict[str, Callable[[Bench], Result]]:
    """What there is to measure, by name."""
    streams = (1, sizes.streams)
    found: dict[str, Callable[[Bench], Result]] = {"call": calls}
    for count in streams:
        found[f"generate-{count}"] = partial(generation, streams=count)
    for mem_len in sizes.memories:
        for count in streams:
            name = f"score-{mem_len}-{count}"
            found[name] = partial(scoring, streams=count, mem_len=mem_len)
    return found | {
        "profile": profiles,
        "trained": trained,
        "wait": waits,
        "gap": gaps,
        "growth": growth,
        "grpc": through_grpc,
    }


def chosen(names: Sequence[str], wanted: str) -> list[str]:
    """The wanted names and those that go on with a hyphen after them, all without any."""
    parts = [part for part in wanted.split(",") if part]

    def fits(name: str, part: str) -> bool:
        return name == part or name.startswith(part + "-")

    for part in parts:
        if not any(fits(name, part) for name in names):
            raise SystemExit(f"--only must name sections of {', '.join(names)}, got {part}")
    return [name for name in names if not parts or any(fits(name, part) for part in parts)]


def measure(bench: Bench, names: Sequence[str], results: Result, out: Path) -> None:
    """Measures sections one by one; each is written as soon as it is there."""
    available = sections(bench.sizes)
    for name in names:
        began = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        found = available[name](bench)
        found["run"] = {
            "command": shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]]),
            "commit": _commit(),
            "seed": bench.seed,
            "minutes": (time.monotonic() - began) / 60,
            "machine": machine(bench.device),
        }
        results["sections"][name] = found
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    """Of the code that was measured; with a plus where files had changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, writes JSON."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device, sizes = torch.device(options.device), QUICK if options.quick else Sizes()
    if options.reps:
        sizes = dataclasses.replace(sizes, reps=options.reps)
    names = chosen(list(sections(sizes)), options.only)
    bench = Bench(
        folder=options.model or checkpoint_folder(options.cache),
        trained=trained_models(options.cache, more=options.peer)[: 1 if options.quick else None],
        settings=[SETTINGS[name] for name in options.settings],
        sizes=sizes,
        device=device,
        cache=options.cache,
        seed=options.seed,
        tell=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )
    out = options.out or Path(f"benchmarks/results/engine-{device.type}.json")
    results: Result = {"sections": {}}
    if out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
    results["settings"] = {name: SETTINGS[name].what for name in options.settings}
    if not options.tables:
        measure(bench, names, results, out)
    found = engine_tables.tables(results, names)
    print(found)
    if options.document:
        text = options.document.read_text(encoding="utf-8")
        options.document.write_text(engine_tables.into(text, found), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="The engine's speed, against a plain baseline.")
    add = flags.add_argument
    add(
        "--only",
        default="",
        help="sections to measure, as call,generate-1; score is all that begin with score-",
    )
    add("--settings", nargs="*", choices=list(SETTINGS), default=list(DEFAULT))
    add("--quick", action="store_true", help="a little of each, to see that it runs")
    add("--tables", action="store_true", help="print the tables of what was measured before")
    add("--document", type=Path, help="Markdown file to put the tables into, between its marks")
    add("--model", type=Path, help="in place of the random 98M: a checkpoint with a tokenizer")
    add(
        "--peer", type=Path, action="append", default=[], help="a further trained model; repeatable"
    )
    add("--reps", type=int, default=0, help="repetitions of what is compared; 0 for the usual ones")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of an operation")
    add("--seed", type=int, default=1, help="of texts and draws")
    add("--cache", type=Path, default=CACHE, help="folder for models and memories made once")
    add("--out", type=Path, help="default: benchmarks/results/engine-DEVICE.json")
    return flags


if __name__ == "__main__":
    main()
