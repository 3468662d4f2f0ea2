"""The compiled kernels, where they were built: a shared library of plain C functions.

A source package builds them if there is a C compiler; without them everything runs, more slowly.
They work on torch's OpenMP threads, so that two sets of threads do not compete for the cores.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


@cache
def find(name: str) -> Callable[..., int] | None:
    """A kernel by its name in C, without ``deqlm_``; None where there is none."""
    library = _library()
    return None if library is None else getattr(library, f"deqlm_{name}")


@cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("kernels" + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                _log.warning("the kernels in %s cannot be loaded: %s", path.name, error)
    return None


def run(kernel: Callable[..., int], *arguments: object) -> None:
    """Calls a kernel, without Python's lock.

    Args:
        kernel: from ``find``.
        arguments: structures, whole numbers, and tensors on the CPU, which the kernel takes by
            their addresses; their shapes, dtypes and strides must be those that it is written for.

    Raises:
        MemoryError: memory is short.
    """
    torch.get_num_threads()  # has this thread's OpenMP use as many as torch does
    if kernel(*map(_as_c, arguments)):
        raise MemoryError("the kernels cannot allocate memory for their sums")


def _as_c(argument: object) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    assert isinstance(argument, ctypes.Structure)
    return ctypes.byref(argument)


def addresses(*tensors: Tensor) -> list[int]:
    """Of dense tensors on the CPU, for a structure; who makes it keeps the tensors."""
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    return [tensor.data_ptr() for tensor in tensors]


def structure(**fields: str) -> type[ctypes.Structure]:
    """A C structure by the kinds of its fields: whole numbers, floats, or addresses."""
    kinds: dict[str, Any] = {
        "int": ctypes.c_int64,
        "float": ctypes.c_float,
        "address": ctypes.c_void_p,
    }
    members = [(name, kinds[kind]) for name, kind in fields.items()]
    return type("Structure", (ctypes.Structure,), {"_fields_": members})


def suits(tensor: Tensor) -> bool:
    """Whether the kernels can work on tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32
