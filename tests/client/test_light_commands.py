"""The client's commands, each at work in a process of its own, import nothing heavy."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands import COMMANDS
from tests.server.live import LiveServer

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "triton", "numpy", "safetensors", "sentencepiece", "deq_model", "training"}
ARGUMENTS = {
    "score": ("examples/caesar.txt",),
    "generate": ("But soft", "--max-tokens", "3"),
    "session": ("list",),
    "tokenize": ("But soft",),
    "profile": ("--steps", "1", "--max-time-s", "0.1"),
    "top": ("--once", "--interval-s", "0.2"),
}
LIGHT = sorted(
    name for name, command in COMMANDS.items() if command.target.startswith("client.commands.")
)
RUN = """
import sys
from cli.__main__ import main
code = main(sys.argv[1:])
print("LOADED", *{name.partition(".")[0] for name in sys.modules})
sys.exit(code)
"""


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that any of the commands may ask."""
    made = LiveServer(tiny_models, profile_dir=tmp_path_factory.mktemp("profiles"))
    yield made
    made.close()


@pytest.mark.parametrize("command", LIGHT)
def test_it_works_without_torch(command: str, server: LiveServer) -> None:
    arguments = ARGUMENTS.get(command, ())
    if command == "top":
        arguments = (*arguments, "--metrics", server.metrics_address)
    done = subprocess.run(
        [sys.executable, "-c", RUN, command, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "proto", "DEQLM_ADDRESS": server.address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert ("grpc" in loaded) == (command != "top")  # that one asks the metrics port
    assert loaded & (HEAVY | {"server"}) == set()


def test_there_are_such_commands() -> None:
    assert {"score", "generate", "session", "tokenize", "info", "health", "check"} <= set(LIGHT)
