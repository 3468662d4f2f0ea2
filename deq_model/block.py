"""f of one dense block, and what solving a block leaves.

Letters: B batch, L tokens of the block, M tokens of memory, K = M + L, D ``d_model``.
"""

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deq_model.attention import Span, block_attention, sliding_positions, span
from deq_model.function import EquilibriumWeights, FunctionDropout
from deq_model.implicit import ImplicitGradient
from deq_model.memory import Memory
from deq_model.solvers.loop import Solution


class BlockFunction:
    """f of one block, ``(B, L, D)`` to the same, its memory projected once.

    Attributes:
        injection: ``(B, L, 3·D)``.
    """

    def __init__(
        self,
        weights: EquilibriumWeights,
        memory: Memory,
        injection: Tensor,
        dropout: FunctionDropout | None = None,
    ) -> None:
        """Projects the memory; ``injection`` is ``(B, L, 3·D)``."""
        length = injection.shape[1]
        self.injection = injection
        self._weights, self._dropout = weights, dropout
        self._key, self._value = weights.project_history(memory.z_hist, memory.u_hist)
        table = weights.position_table(
            memory.length + length,
            injection.dtype,
            None if dropout is None else dropout.position,
        )
        self._positions = sliding_positions(table)
        self._r_w_bias = weights.r_w_bias.to(injection.dtype)
        self._r_r_bias = weights.r_r_bias.to(injection.dtype)
        self._span = self._block_span(memory.length, length, injection.device)

    def _block_span(self, mem_len: int, length: int, device: torch.device) -> Span:
        keys = torch.arange(mem_len + length, device=device)[None]
        return span(
            keys[:, mem_len:],
            keys,
            first=keys.new_zeros(1, length),
            reach=self._weights.config.attention_span,
        )

    def detach(self) -> Self:
        """The same function, out of the graph: for the solver, who calls it often."""
        other = copy.copy(self)
        other._weights = self._weights.detach()
        for name in ("injection", "_key", "_value", "_positions", "_r_w_bias", "_r_r_bias"):
            setattr(other, name, getattr(self, name).detach())
        return other

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_attention(
            query,
            torch.cat([self._key, key], dim=1),
            torch.cat([self._value, value], dim=1),
            positions=self._positions,
            r_w_bias=self._r_w_bias,
            r_r_bias=self._r_r_bias,
            span=self._span,
            dropout=None if self._dropout is None else self._dropout.attention_weight,
        )

    def __call__(self, z: Tensor) -> Tensor:
        """f(z)."""
        return self._weights(z, self.injection, self._attend, self._dropout)


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a block without gradients gives.

    Attributes:
        hidden: ``(B, L, D)``, z*.
        memory: for the next block.
        solution: of the fixed point.
    """

    hidden: Tensor
    memory: Memory
    solution: Solution


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a block with gradients gives.

    Attributes:
        nll: ``(B, L)``, differentiable, of the last state: the loss to report.
        objective: ``(B, L)``, differentiable: the loss to minimise. It is ``nll``, and where
            several states are supervised the earlier ones' by their weights in addition.
        memory: for the next block, detached.
        solution: of the forward fixed point.
        gradient: its ``solution`` is that of the backward system, once the backward pass has run:
            ``gradient.solution.status`` tells which rows got a gradient of zeros since no product
            was finite. It stays None with the phantom gradient, which solves nothing.
        f_z: ``(B, L, D)``, f(z*) with its graph, for estimates about the Jacobian.
        z: ``(B, L, D)``, the leaf that f_z was computed from.
    """

    nll: Tensor
    objective: Tensor
    memory: Memory
    solution: Solution
    gradient: ImplicitGradient
    f_z: Tensor
    z: Tensor


@dataclass(frozen=True, slots=True)
class UnrolledResult:
    """What a block of plain applications of f gives.

    Attributes:
        nll: ``(B, L)``, differentiable.
        memory: for the next block, detached.
        f_z: ``(B, L, D)``, the last state.
        z: ``(B, L, D)``, the state before it.
    """

    nll: Tensor
    memory: Memory
    f_z: Tensor
    z: Tensor
