"""The equilibrium function f: one layer, solved to its fixed point for every token.

It is written once, for rows of any grouping: all of it but attention works on tokens one by one,
so training calls it on ``(batch, tgt_len, d_model)`` and a server on a packed ``(rows, d_model)``.
Who belongs to whom is known to ``attend`` alone.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_model.attention import sinusoid_table
from deq_model.config import ModelConfig
from deq_model.normalised import NormalisedLinear

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(query, key, value) -> mixed``: each ``(…, n_head, d_head)``, the result ``(…, d_model)``."""

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionDropout:
    """Dropout masks of one forward pass, shared by all positions and all solver steps.

    Attributes:
        position: ``(1, d_model)`` on the sinusoids.
        attention_output: ``(batch, 1, d_model)``.
        inner: ``(batch, 1, d_inner)``, after the ReLU.
        output: ``(batch, 1, d_model)``, after the feed-forward.
        attention_weight: ``(batch, n_head, tgt_len, klen)``, one per element; None for none.
    """

    position: Tensor
    attention_output: Tensor
    inner: Tensor
    output: Tensor
    attention_weight: Tensor | None = None

    def part(self, begin: int, end: int) -> Self:
        """The masks of samples ``begin`` to ``end − 1``."""
        weight = self.attention_weight
        return dataclasses.replace(
            self,
            attention_output=self.attention_output[begin:end],
            inner=self.inner[begin:end],
            output=self.output[begin:end],
            attention_weight=None if weight is None else weight[begin:end],
        )


class EquilibriumParameters(nn.Module):
    """The trained parameters of f."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model

        def linear(n_in: int, n_out: int, *, bias: bool) -> NormalisedLinear:
            return NormalisedLinear(
                n_in,
                n_out,
                bias=bias,
                norm=config.norm,
                clip=config.norm_clip,
                target=config.norm_target,
            )

        self.config = config
        self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.qkv_net = linear(d_model, 3 * d_model, bias=False)
        self.r_net = linear(d_model, d_model, bias=False)
        self.o_net = linear(d_model, d_model, bias=True)
        self.ff1_net = linear(d_model, config.d_inner, bias=True)
        self.ff2_net = linear(config.d_inner, d_model, bias=True)

    def fold(self) -> "EquilibriumWeights":
        """Plain matrices for the solver, differentiable in the parameters."""
        assert self.o_net.bias is not None
        assert self.ff1_net.bias is not None
        assert self.ff2_net.bias is not None
        return EquilibriumWeights(
            config=self.config,
            qkv=self.qkv_net.folded(),
            r=self.r_net.folded(),
            o=self.o_net.folded(),
            o_bias=self.o_net.bias,
            ff1=self.ff1_net.folded(),
            ff1_bias=self.ff1_net.bias,
            ff2=self.ff2_net.folded(),
            ff2_bias=self.ff2_net.bias,
            r_w_bias=self.r_w_bias,
            r_r_bias=self.r_r_bias,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EquilibriumWeights:
    """The weights of f, folded: lengths and directions already multiplied out.

    Matrices are ``(out, in)``. Their dtype is that of the matrix products; states, normalisation
    and attention stay in the dtype of the state that is passed in.
    """

    config: ModelConfig
    qkv: Tensor
    r: Tensor
    o: Tensor
    o_bias: Tensor
    ff1: Tensor
    ff1_bias: Tensor
    ff2: Tensor
    ff2_bias: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors: dict[str, Any] = {
            field.name: change(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "config"
        }
        return dataclasses.replace(self, **tensors)

    def detach(self) -> Self:
        """The same numbers, out of the graph."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The weights on a device, matrices cast once; attention biases stay in float32."""
        moved = self._map(lambda tensor: tensor.to(device, dtype).contiguous())
        kept = torch.promote_types(dtype, torch.float32)
        return dataclasses.replace(
            moved,
            r_w_bias=self.r_w_bias.to(device, kept),
            r_r_bias=self.r_r_bias.to(device, kept),
        )

    def heads(self, channels: Tensor) -> Tensor:
        """``(…, d_model)`` to ``(…, n_head, d_head)``."""
        heads: Tensor = channels.unflatten(-1, (self.config.n_head, self.config.d_head))
        return heads

    def position_table(
        self, length: int, dtype: torch.dtype, dropout: Tensor | None = None
    ) -> Tensor:
        """``R(δ) = W_r · [sin; cos]`` for δ = 0 … length − 1: ``(length, n_head, d_head)``."""
        table = sinusoid_table(length, self.config.d_model, device=self.r.device, dtype=dtype)
        if dropout is not None:
            table = table * dropout
        return self.heads(_linear(table, self.r))

    def project_history(self, z: Tensor, injection: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of finished tokens: constants for every later solve.

        Args:
            z: ``(…, d_model)`` fixed points.
            injection: ``(…, 3·d_model)`` their injections.

        Returns:
            key and value, ``(…, n_head, d_head)`` each.
        """
        d_model = self.config.d_model
        if self.config.pre_lnorm:
            z = _layer_norm(z)
        channels = _linear(z, self.qkv[d_model:]) + injection[..., d_model:]
        key, value = channels.chunk(2, dim=-1)
        return self.heads(key), self.heads(value)

    def __call__(
        self,
        z: Tensor,
        injection: Tensor,
        attend: Attend,
        dropout: FunctionDropout | None = None,
    ) -> Tensor:
        """One call of f.

        Args:
            z: ``(…, d_model)`` states.
            injection: ``(…, 3·d_model)``, thirds for query, key and value.
            attend: attention over the caller's memory and these rows.
            dropout: masks of this forward pass, or None.

        Returns:
            f(z), shape and dtype of z.
        """
        pre = self.config.pre_lnorm
        channels = _linear(_layer_norm(z) if pre else z, self.qkv) + injection
        query, key, value = (self.heads(part) for part in channels.chunk(3, dim=-1))
        mixed = _linear(attend(query, key, value), self.o, self.o_bias)
        if dropout is not None:
            mixed = mixed * dropout.attention_output
        hidden = mixed + z if pre else _layer_norm(mixed + z)
        normed = _layer_norm(hidden) if pre else hidden
        inner = _linear(normed, self.ff1, self.ff1_bias, dtype=self.ff1.dtype).relu()
        if dropout is not None:
            inner = inner * dropout.inner
        out = _linear(inner, self.ff2, self.ff2_bias, dtype=z.dtype)
        if dropout is not None:
            out = out * dropout.output
        return out + hidden if pre else _layer_norm(out + hidden)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """A product in the weight's dtype; the result in x's dtype, or the one asked for."""
    return functional.linear(x.to(weight.dtype), weight, bias).to(dtype or x.dtype)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)
