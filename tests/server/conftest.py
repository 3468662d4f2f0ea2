"""Fixtures of the server's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of the store of ``serve``."""
    return tmp_path / "sessions.db"


@pytest.fixture
def serve(
    make_server: Callable[..., LiveServer], tiny_models: Path, path: Path
) -> Callable[..., LiveServer]:
    """A server with a store in a file, in place of the one before."""
    running: list[LiveServer] = []

    def serve(**changes: Any) -> LiveServer:
        for server in running:
            server.run(server.server.stop(grace_s=0.0))
        model = (f"pieces={tiny_models / 'pieces'}",)
        running[:] = [make_server(**{"session_store": f"sqlite:{path}", "model": model, **changes})]
        return running[0]

    return serve
