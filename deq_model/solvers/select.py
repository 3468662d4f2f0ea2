"""Choosing between tensors by rows, without work where one of them is wanted for all rows.

On the CPU a ``torch.where`` over rows costs several times a copy, and in most calls of a solver no
row is an exception. On a GPU nobody looks first, since the answer would have to be waited for.
"""

import torch
from torch import Tensor

_LARGE = 1 << 15
"""Numbers from which on looking first is cheaper than choosing."""


def chosen(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` in the rows of ``mask`` and ``other`` elsewhere.

    Args:
        mask: ``(…)`` bool.
        one: ``(…, D)``.
        other: ``(…, D)``.

    Returns:
        ``(…, D)``: mind that it may be ``one`` or ``other`` itself.
    """
    if mask.device.type == "cpu" and one.numel() >= _LARGE:
        count = int(mask.count_nonzero())
        if count == 0:
            return other
        if count == mask.numel():
            return one
    return torch.where(mask[..., None], one, other)


def seldom(mask: Tensor) -> bool:
    """Whether any of an exceptional kind is there; on a GPU that is not waited for: perhaps."""
    return mask.device.type != "cpu" or bool(mask.any())


def finite_rows(x: Tensor) -> Tensor:
    """Which rows of ``(…, D)`` are finite: ``(…)`` bool.

    ``0 · x`` is 0, or NaN for what is not finite: a product and a sum, where ``isfinite`` and
    ``all`` take eight times as long on the CPU.
    """
    return (x * 0).sum(-1) == 0


def fill(buffer: Tensor, rows: Tensor | slice, value: float) -> None:
    """Sets rows of a buffer to one value.

    A number that is assigned to indexed rows would go to a GPU by a copy that the host waits for.
    """
    if isinstance(rows, slice):
        buffer[rows] = value
    else:
        buffer.index_fill_(0, rows, value)
