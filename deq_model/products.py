"""Matrix products with weights that never change, prepared once for the device that makes them.

On a CPU a weight matrix is reordered for the kernels when it is loaded: for one row that halves the
time of a product, which is then that of reading the weights. Where a kernel is not to be had, the
plain product takes its place: results differ by rounding only.

Letters: n rows, I inputs, O outputs.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Format = Literal["float64", "float32", "float16", "bfloat16"]
"""How weights are held. Results are accumulated in float32 at least.

float16 on a CPU: weights in float16, inputs and results in float32, so that only the weights are
rounded. bfloat16: inputs and results are rounded too.
"""

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Product(Protocol):
    """``x Wᵀ + b`` or its ReLU, ``(…, I)`` to ``(…, O)``.

    Attributes:
        nbytes: of the weights, which a call reads whole.
    """

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """The product; its dtype is that of the kernel, see ``Format``."""


class _Plain:
    """By torch's own product in the weight's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self._weight, self._bias, self._relu = weight, bias, relu
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self._weight.dtype)
        if self._relu and self._bias is not None and x.dim() == 2 and x.device.type != "cpu":
            return _biased_relu(x, self._weight, self._bias)
        out = functional.linear(x, self._weight, self._bias)
        return out.relu_() if self._relu else out


def _biased_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``relu(x Wᵀ + b)`` of ``(n, I)``; a GPU writes the inner activations once, not thrice."""
    return torch._addmm_activation(bias, x, weight.t())


class _Packed:
    """By oneDNN, float32 or bfloat16, with a reordered weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self.nbytes = weight.nbytes
        self._dtype = weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias, self._relu = bias, "relu" if relu else "none"

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self._weight, self._bias, self._relu, [], ""
        )
        return out


class _Half:
    """By FBGEMM: float16 weights, the rest in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self.nbytes = weight.numel() * 2
        with _engine("fbgemm"):
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
        ops = torch.ops.quantized
        self._product = ops.linear_relu_dynamic_fp16 if relu else ops.linear_dynamic_fp16

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._product(x.float(), self._packed)
        return out


class _engine:
    """Sets the library that packs quantised weights: a global of torch, put back at the end."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self._name

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self._before


_Kernel = Callable[[Tensor, Tensor | None, bool], Product]


def prepare(weight: Tensor, bias: Tensor | None, form: Format, *, relu: bool = False) -> Product:
    """A product with ``weight`` ``(O, I)`` and ``bias`` ``(O,)``, both in full precision.

    Args:
        weight: on the device that will make the product.
        bias: or None.
        form: how to hold the weight.
        relu: whether negative results become 0.
    """
    kernel = _kernel(form) if weight.device.type == "cpu" else _Plain
    dtype = torch.float32 if kernel is _Half else _DTYPES[form]
    weight = weight.detach().to(dtype).contiguous()
    return kernel(weight, None if bias is None else bias.detach().to(dtype), relu)


def has_kernel(form: Format, device: torch.device) -> bool:
    """Whether weights can be held so on a device to any advantage."""
    if device.type != "cpu" or form in ("float64", "float32"):
        return True
    return _kernel(form) is not _Plain


@cache
def _kernel(form: Format) -> "_Kernel":
    """The best kernel that works on this CPU, found by trying it on a small product."""
    kernels: dict[Format, _Kernel] = {
        "float32": _Packed,
        "bfloat16": _Packed,
        "float16": _Half,
    }
    best = kernels.get(form, _Plain)
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    try:
        if form == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return _Plain
        best(torch.eye(4, dtype=dtype), torch.zeros(4, dtype=dtype), False)(torch.ones(1, 4))
    except (RuntimeError, AttributeError):  # this build of torch has no such kernel
        return _Plain
    return best
