"""Fixtures of the client's tests."""

from collections.abc import Iterator

import pytest

from client.sync import Client
from tests.client.fake_server import FakeServer


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
