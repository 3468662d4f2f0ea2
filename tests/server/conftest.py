"""Fixtures of the server's tests."""

from collections.abc import Iterator

import grpc
import pytest

from tests.server.calls import Stubs
from tests.server.live import LiveServer


@pytest.fixture
def stubs(live_server: LiveServer) -> Stubs:
    """Stubs of the shared server, for an owner without other sessions."""
    return Stubs(live_server.channel, owner="ann")


@pytest.fixture
def other(live_server: LiveServer) -> Stubs:
    """Stubs for somebody else."""
    return Stubs(live_server.channel, owner="bob")


@pytest.fixture
def session(stubs: Stubs) -> Iterator[str]:
    """A session that holds a few tokens."""
    session_id = stubs.create()
    stubs.score("It was a dark night.", session_id=session_id)
    yield session_id
    try:
        stubs.delete(session_id)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND
