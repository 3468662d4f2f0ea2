"""The device a computation runs on, checked before anything is put on it."""

import torch

from deq_model.errors import ConfigError


def find_device(name: str) -> torch.device:
    """The device called cpu, cuda or cuda:N. Raises ConfigError if this machine lacks it."""
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise ConfigError(f"device must be cpu, cuda or cuda:N, got {name}")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(f"device must be cpu here: torch finds no CUDA device, got {name}")
    if int(number or 0) >= count:
        raise ConfigError(f"device must be cuda:0 to cuda:{count - 1} or cpu here, got {name}")
    return torch.device("cuda", int(number or 0))
