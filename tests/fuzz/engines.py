"""What makes inputs: libFuzzer through Atheris, which follows the code they reach, or chance."""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.findings import Findings
from tests.fuzz.mutations import mutated
from tests.fuzz.target import workspace

TRACED = [
    "client",
    "cli",
    "deq_model",
    "loadtest",
    "prometheus_client.parser",
    "server",
    "training",
    "tokenize",
    "yaml",
    "numpy.lib",
]
"""Packages whose branches Atheris follows."""


def by_chance(found: Findings, *, count: int, seed: int, done: Callable[[], None]) -> None:
    """Tries the seeds, then mutations of them."""
    seeds = found.target.seeds()
    generator = random.Random(f"{seed} {found.target.name}")
    for data in seeds:
        found.try_out(data)
    while found.inputs < count:
        found.try_out(mutated(seeds, generator))
    done()


def by_coverage(found: Findings, *, count: int, seed: int, done: Callable[[], None]) -> None:
    """The same by libFuzzer, which ends the process; its notes of a crash lie with the findings."""
    import atheris

    with tempfile.TemporaryDirectory(prefix="deqlm-corpus-") as name:
        for index, data in enumerate(found.target.seeds()):
            Path(name, str(index)).write_bytes(data)

        def try_out(data: bytes) -> None:
            found.try_out(data)
            if found.inputs >= count:
                done()
                shutil.rmtree(workspace(), ignore_errors=True)
                os._exit(0)

        found.folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("-rss_limit_mb=6000", "-timeout=60", "-print_final_stats=0", "-verbosity=0"),
            f"-seed={seed}",
            f"-artifact_prefix={found.folder}/",
            name,
        ]
        atheris.Setup([sys.argv[0], *arguments], try_out)
        atheris.Fuzz()
