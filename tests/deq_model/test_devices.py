"""What device names mean on machines with and without CUDA."""

import pytest
import torch

from deq_model.devices import find_device
from deq_model.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("cpu", 0, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_device_there_is(
    name: str, count: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert find_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "device must be cpu here: torch finds no CUDA device, got cuda$"),
        ("cuda:2", 2, "device must be cuda:0 to cuda:1 or cpu here, got cuda:2"),
        ("tpu", 2, "device must be cpu, cuda or cuda:N, got tpu"),
        ("cuda:", 2, "device must be cpu, cuda or cuda:N, got cuda:$"),
        ("cuda:-1", 2, "device must be cpu, cuda or cuda:N, got cuda:-1"),
    ],
)
def test_a_device_there_is_not(
    name: str, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=message):
        find_device(name)
