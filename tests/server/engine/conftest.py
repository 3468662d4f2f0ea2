"""Fixtures of the engine's tests."""

from collections.abc import Iterator

import pytest

from tests.server.engine.helpers import MODEL, Caller, running_engine


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    """An engine on the model of most tests, shared by those of a module."""
    with running_engine(MODEL) as running:
        yield running
