"""The feed-forward ``W_2 relu(W_1 x + b_1) + b_2`` for inference, accurate or in 8 bits.

It has nearly all of f's weights, and works on tokens one by one. In 8 bits it is rough (its result
is off by one or two per cent), but reads half as many bytes and multiplies faster: good enough for
the first calls of a solve, whose states are rough themselves.

Letters: n tokens, D ``d_model``, I ``d_inner``.
"""

import math
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from deq_model.function import EquilibriumWeights
from deq_model.products import Format, prepare

_ZERO = 128
"""What stands for 0 in an unsigned input."""
_LARGEST = 255
_SMALLEST = 1e-12
_GROWTH = 1.5


class FeedForward(Protocol):
    """``(n, D)`` to the same, in the dtype of x.

    Attributes:
        nbytes: of the weights, which a call reads whole.
    """

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward."""


class PreparedFeedForward:
    """With weights prepared in one number format."""

    def __init__(self, weights: EquilibriumWeights, form: Format) -> None:
        """Takes weights in full precision; they are copied."""
        self._in = prepare(weights.ff1, weights.ff1_bias, form, relu=True)
        self._out = prepare(weights.ff2, weights.ff2_bias, form)
        self.nbytes = self._in.nbytes + self._out.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward; between the products numbers stay in the kernels' format."""
        return self._out(self._in(x)).to(x.dtype)


class Int8FeedForward:
    """With 8-bit weights, one scale for each output, and 8-bit inputs, one scale for each call.

    The inner activations are quantised within the first product, by a scale that must be known
    before it. It is made for the largest activation met so far: where a larger one comes, the scale
    grows and the product is made again, which is soon over.
    """

    def __init__(self, weights: EquilibriumWeights) -> None:
        """Takes weights in full precision; they are copied."""
        self._in = _Quantised(weights.ff1, weights.ff1_bias)
        self._out = _Quantised(weights.ff2, weights.ff2_bias)
        self.nbytes = weights.ff1.numel() + weights.ff2.numel()
        # Inputs are normalised: some such vectors give a first idea of the largest activation.
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(8, weights.ff1.shape[1], generator=generator)
        inner = functional.linear(sample, weights.ff1.float(), weights.ff1_bias.float())
        self._inner_scale = max(float(inner.detach().max()), _SMALLEST) / _LARGEST

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward, roughly; NaN for all tokens where one is not finite."""
        largest = float(x.abs().amax())
        if not math.isfinite(largest):
            return torch.full_like(x, torch.nan)
        scale = max(largest, _SMALLEST) / (_LARGEST - _ZERO)
        whole = (x / scale).round_().add_(_ZERO).to(torch.uint8)
        inner = self._in(whole, scale, _ZERO, into=(self._inner_scale, torch.uint8), relu=True)
        if int(inner.amax()) == _LARGEST:
            self._inner_scale *= _GROWTH
            return self(x)
        out = self._out(inner, self._inner_scale, 0, into=(1.0, torch.float32))
        return out.to(x.dtype)


class _Quantised:
    """An 8-bit weight ``(O, I)`` in the kernels' order, and its product."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        weight = weight.detach().float()
        self._scale = weight.abs().amax(1).clamp(min=_SMALLEST) / 127
        whole = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zero = torch.zeros(len(weight), dtype=torch.long)
        self._bias = bias.detach().float()

    def __call__(
        self,
        x: Tensor,
        scale: float,
        zero: int,
        *,
        into: tuple[float, torch.dtype],
        relu: bool = False,
    ) -> Tensor:
        """``(n, I)`` uint8 to ``(n, O)`` of the scale and dtype of ``into``."""
        operands = (x, scale, zero, self._weight, self._scale, self._zero, self._bias)
        after = "relu" if relu else "none"
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *operands, into[0], 0, into[1], after, [], ""
        )
        return out


@cache
def has_int8(device_type: str) -> bool:
    """Whether ``Int8FeedForward`` works on such a device, found by a small product."""
    if device_type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False  # without VNNI instructions 8 bits are no faster than 32
    try:
        _Quantised(torch.eye(4), torch.zeros(4))(
            torch.full((1, 4), _ZERO, dtype=torch.uint8), 1.0, _ZERO, into=(1.0, torch.float32)
        )
    except (RuntimeError, AttributeError):  # this build of torch has no such kernel
        return False
    return True
