"""Broyden's step of many rows as one kernel of a CPU; ``fused.py`` has the same for a GPU."""

from typing import Any

from torch import Tensor

from deq_model.native.library import addresses, find, run, structure, suits

_Solver = structure(
    dim="int",
    depth="int",
    restart="float",
    least_norm="float",
    state="address",
    least="address",
    damping="address",
    terms="address",
    count="address",
)


class NativeStep:
    """The kernel and the buffers of all rows, which it changes in place: ``FusedStep``'s."""

    def __init__(
        self,
        *,
        state: Tensor,
        least: Tensor,
        damping: Tensor,
        terms: Tensor,
        count: Tensor,
        restart: float,
        least_norm: float,
    ) -> None:
        """Takes what ``FusedStep`` takes, float32 on a CPU."""
        kernel = find("observe")
        assert kernel is not None, "there are no kernels"
        self._kernel = kernel
        self._buffers = (state, least, damping, terms, count)
        sizes: tuple[Any, ...] = (state.shape[2], terms.shape[1], restart, least_norm)
        self._solver = _Solver(*sizes, *addresses(*self._buffers))

    def __call__(
        self,
        rows: Tensor,
        f_z: Tensor,
        settled: Tensor,
        *,
        seen: Tensor,
        measured: Tensor,
    ) -> None:
        """One observation, of distinct rows; the arguments are those of ``FusedStep``."""
        run(self._kernel, self._solver, len(rows), rows, f_z.contiguous(), settled, seen, measured)


def can_run(like: Tensor) -> bool:
    """Whether there is a kernel for states like this tensor."""
    return suits(like) and find("observe") is not None
