"""Fixtures of the client's tests."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.sync import Client
from tests.client.fake_server import TEXT, FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A scripted server."""
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def waits() -> list[float]:
    """What the client waited between attempts, without waiting."""
    return []


@pytest.fixture
def client(fake: FakeServer, waits: list[float]) -> Iterator[Client]:
    """A client of the scripted server."""
    with Client(fake.address, owner="ann", sleep=waits.append) as client:
        yield client


@pytest.fixture
def deqlm(
    fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `deqlm COMMAND ...` and return exit code, stdout and stderr."""

    def run(command: str, *argv: str, address: str = fake.address) -> tuple[int, str, str]:
        module = importlib.import_module(f"client.commands.{command}")
        try:
            code = module.main([*argv, "--address", address], f"deqlm {command}")
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that runs a command."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([".", "proto"])}


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    """Path of a line of text."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def long_file(tmp_path: Path) -> str:
    """Path of a text that one message does not hold."""
    path = tmp_path / "long.txt"
    path.write_text("forty thousand ä characters " * 3000)
    return str(path)
