"""Both clients offer the same calls, and the documented example runs."""

import inspect
import re
from pathlib import Path

import pytest

from client._aio_session import AsyncSession
from client._aio_streams import AsyncGeneration
from client._sync_session import Session
from client._sync_streams import Generation
from client.aio import AsyncClient
from client.sync import Client

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


@pytest.mark.parametrize(
    ("one", "other"),
    [(Client, AsyncClient), (Session, AsyncSession), (Generation, AsyncGeneration)],
)
def test_both_clients_take_the_same_arguments(one, other):
    assert _signatures(one) == _signatures(other)


def _signatures(cls):
    return {
        name: [(item.name, item.kind, item.default) for item in _parameters(member)]
        for name, member in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


def _parameters(function):
    return inspect.signature(function).parameters.values()


def test_the_documented_example_runs(fake, capsys):
    source = re.search(r"```python\n(.*?)```", API.read_text(), re.DOTALL)[1]
    exec(compile(source.replace("127.0.0.1:50051", fake.address), str(API), "exec"), {})
    out = capsys.readouterr().out
    assert "-1.0 stormy" in out
    assert out.endswith("The end.")
    assert fake.methods()[-1] == "DeleteSession"
