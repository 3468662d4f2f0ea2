"""The feed-forward by products of 8-bit integers: a difference from where it was computed exactly.

While a token is solved its state changes less and less, and so do the inputs of the feed-forward.
So it need not be computed anew in each call of f. Once, near the fixed point, it is computed
*exactly*, with two bytes for each number (an error of 6e-5): that is the row's *anchor*. In other
calls only the difference from the anchor is, with one byte for each number. Its error is a share of
the distance (0.9 %), so that it vanishes as the solve converges, unlike that of a product in 8
bits; and it takes a quarter of the time, since it reads half the bytes and multiplies faster.
Until it has an anchor of its own a row is a difference from zero: rough, and good enough for
states that are rough themselves.

Letters: n rows, D ``d_model``, I ``d_inner``.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from deq_model.function import EquilibriumWeights
from deq_model.native.library import addresses, find, run, structure

_PANEL, _BLOCK = 64, 512
"""As in ``native/feed_forward.c``."""
_LARGEST, _SECOND, _SHIFT = 127, 254, 128
_SMALLEST = 1e-12
_DISTANCE, _SAMPLES = 0.1, 16
"""Of the differences by which the error is measured, and how many."""

_Weights = structure(
    dim="int",
    dim_padded="int",
    inner_padded="int",
    in_high="address",
    in_low="address",
    in_scale="address",
    in_bias="address",
    out_high="address",
    out_low="address",
    out_scale="address",
    out_bias="address",
    anchor_x="address",
    anchor_inner="address",
    anchor_y="address",
)


class Int8FeedForward:
    """With weights of two bytes each, of which differences read the first.

    Attributes:
        nbytes: of the weights that differences read; exact rows read twice as many.
        zero: the anchor of rows that have none of their own.
        error: of f by that of a difference, relative, as a share of how far the input has moved:
            measured on random ones.
        moved: ``(n,)`` distance of the last inputs from their anchors, relative to their lengths; 0
            for exact rows.
    """

    def __init__(self, weights: EquilibriumWeights, *, rows: int) -> None:
        """Takes weights in full precision, on a CPU; they are copied.

        Args:
            weights: of f.
            rows: anchors 0 to ``rows − 1`` are the caller's.
        """
        kernel = find("feed_forward")
        assert kernel is not None and has_int8("cpu"), "there are no products in 8 bits"
        self._kernel = kernel
        d_inner, d_model = weights.ff1.shape
        into = _padded(weights.ff1, _up(d_inner, _PANEL), _up(d_model, 4))
        out = _padded(weights.ff2, _up(d_model, _PANEL), len(into))
        blocks = [_bytes(block) for block in out.split(_BLOCK, dim=1)]
        first = _bytes(into)
        self.zero, self.nbytes = rows, into.numel() + out.numel()
        self._tensors = (
            first.high,
            first.low,
            first.scale,
            functional.pad(weights.ff1_bias.detach().float(), (0, len(into) - d_inner)),
            torch.cat([block.high for block in blocks]),
            torch.cat([block.low for block in blocks]),
            torch.stack([block.scale for block in blocks]),
            weights.ff2_bias.detach().float().contiguous(),
            torch.zeros(rows + 1, d_model),
            torch.zeros(rows + 1, len(into), dtype=torch.bfloat16),
            torch.zeros(rows + 1, d_model),
        )
        self._weights = _Weights(d_model, len(out), len(into), *addresses(*self._tensors))
        self._d_model = d_model
        self.error = self._measure_error()
        self._compute_exactly(torch.zeros(1, d_model))

    def _measure_error(self) -> float:
        """Compares differences from an anchor with exact rows; the anchors mean nothing after."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(_SAMPLES + 1, self._d_model, generator=generator)
        x = functional.layer_norm(x, (self._d_model,))
        near = x[:1] + _DISTANCE * x[1:]
        self._compute_exactly(x[:1])
        self.set_rows(torch.full((_SAMPLES,), self.zero), torch.zeros(_SAMPLES, dtype=torch.bool))
        differences, moved = self(near), self.moved
        true = torch.cat([self._compute_exactly(row[None]) for row in near])
        wrong = (differences - true).norm(dim=1) / (true + near).norm(dim=1)
        return float((wrong / moved).mean())

    def _compute_exactly(self, row: Tensor) -> Tensor:
        """Of one row, which becomes the anchor of those without one of their own."""
        self.set_rows(torch.tensor([self.zero]), torch.tensor([True]))
        return self(row)

    def set_rows(self, anchors: Tensor, exact: Tensor) -> None:
        """Says what the next rows are, up to the next time.

        Args:
            anchors: ``(n,)`` int64, what they are differences from; an exact row becomes it.
            exact: ``(n,)`` bool.
        """
        self._anchors, self._exact = anchors, exact

    def __call__(self, x: Tensor) -> Tensor:
        """Computes rows; one that is not finite spoils itself alone, and the anchor it becomes.

        Args:
            x: ``(n, D)``, as many rows as were set.

        Raises:
            MemoryError: memory is short.
        """
        x = x.float().contiguous()
        out, self.moved = torch.empty_like(x), x.new_empty(len(x))
        set_to = (self._anchors, self._exact)
        run(self._kernel, self._weights, len(x), x, *set_to, out, self.moved)
        return out

    def error_by_row(self) -> list[float]:
        """Of f, relative, by the differences of the last call; 0 for exact rows."""
        error: list[float] = (self.moved * self.error).tolist()
        return error


@cache
def has_int8(device_type: str) -> bool:
    """Whether ``Int8FeedForward`` works on such a device: a CPU with AVX-512 VNNI."""
    kernel = find("has_int8")
    return device_type == "cpu" and kernel is not None and bool(kernel())


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A matrix ``(O, I)`` as ``scale · (high + low / 254)``, bytes in the kernel's order."""

    high: Tensor
    low: Tensor
    scale: Tensor


def _bytes(weight: Tensor) -> _Bytes:
    scale = weight.abs().amax(1).clamp(min=_SMALLEST) / _LARGEST
    whole = weight / scale[:, None]
    high = whole.round()
    return _Bytes(_ordered(high), _ordered(((whole - high) * _SECOND).round()), scale)


def _ordered(numbers: Tensor) -> Tensor:
    """Panels of 64 outputs, in each four inputs side by side, as unsigned bytes."""
    shifted = (numbers + _SHIFT).to(torch.uint8)
    return shifted.view(len(numbers) // _PANEL, _PANEL, -1, 4).transpose(1, 2).flatten()


def _padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    weight = weight.detach().float()
    return functional.pad(weight, (0, columns - weight.shape[1], 0, rows - len(weight)))


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
