"""The whole language model, block by block: for training, evaluation and tests.

Letters: B batch, L tokens of a block, M tokens of memory, D ``d_model``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deq_model.adaptive_softmax import AdaptiveLogSoftmax
from deq_model.attention import Span, relative_attention, span
from deq_model.config import ModelConfig
from deq_model.embedding import AdaptiveEmbedding
from deq_model.errors import ConfigError
from deq_model.function import EquilibriumParameters, EquilibriumWeights, FunctionDropout
from deq_model.implicit import ImplicitGradient
from deq_model.memory import Memory
from deq_model.normalised import NormalisedLinear
from deq_model.solvers.loop import Solution, solve_block
from deq_model.solvers.options import SolverOptions

Initial = Literal["normal", "uniform"]


class BlockFunction:
    """f of one block, ``(B, L, D)`` to the same, its memory projected once."""

    def __init__(
        self,
        weights: EquilibriumWeights,
        memory: Memory,
        injection: Tensor,
        dropout: FunctionDropout | None = None,
    ) -> None:
        """Projects the memory; ``injection`` is ``(B, L, 3·D)``."""
        length = injection.shape[1]
        self._weights, self._injection, self._dropout = weights, injection, dropout
        self._key, self._value = weights.project_history(memory.z_hist, memory.u_hist)
        klen = memory.length + length
        self._positions = weights.position_table(
            klen, injection.dtype, None if dropout is None else dropout.position
        )
        self._span = self._block_span(memory.length, length, injection.device)

    def _block_span(self, mem_len: int, length: int, device: torch.device) -> Span:
        keys = torch.arange(mem_len + length, device=device)[None]
        return span(
            keys[:, mem_len:],
            keys,
            first=keys.new_zeros(1, length),
            reach=self._weights.config.attention_span,
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return relative_attention(
            query,
            torch.cat([self._key, key], dim=1),
            torch.cat([self._value, value], dim=1),
            positions=self._positions,
            r_w_bias=self._weights.r_w_bias.to(query.dtype),
            r_r_bias=self._weights.r_r_bias.to(query.dtype),
            span=self._span,
            dropout=None if self._dropout is None else self._dropout.attention_weight,
        )

    def __call__(self, z: Tensor) -> Tensor:
        """f(z)."""
        return self._weights(z, self._injection, self._attend, self._dropout)


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
        nll: ``(B, L)``, differentiable.
        memory: for the next block, detached.
        solution: of the forward fixed point.
        gradient: holds the backward solution once the backward pass has run.
        f_z: ``(B, L, D)``, f(z*) with its graph, for estimates about the Jacobian.
        z: ``(B, L, D)``, the leaf that f_z was computed from.
    """

    nll: Tensor
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


@dataclass(frozen=True, slots=True)
class _Masks:
    embedding: Tensor
    hidden: Tensor
    function: FunctionDropout


class DEQLanguageModel(nn.Module):
    """Embedding, injection, equilibrium and softmax."""

    def __init__(self, config: ModelConfig) -> None:
        """Makes the parameters, uninitialised: load a checkpoint or call ``reset``."""
        super().__init__()
        self.config = config
        self.embedding = AdaptiveEmbedding(config)
        self.injection = nn.utils.skip_init(nn.Linear, config.d_model, 3 * config.d_model)
        self.f = EquilibriumParameters(config)
        self.softmax = AdaptiveLogSoftmax(config, self.embedding)

    def reset(
        self,
        *,
        std: float = 0.01,
        projection_std: float = 0.01,
        kind: Initial = "normal",
        bound: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Initialises as published: weights at random, lengths to match, biases zero.

        Args:
            std: standard deviation of the weights, if ``kind`` is normal.
            projection_std: standard deviation of the projections of embedding and softmax, which
                are normal in either kind.
            kind: of the distribution of all other weights.
            bound: the weights are within ± this, if ``kind`` is uniform.
            generator: source of the weights.
        """
        if kind not in ("normal", "uniform"):
            raise ConfigError(f"kind must be normal or uniform, got {kind!r}")

        def draw(tensor: Tensor) -> None:
            if kind == "normal":
                tensor.normal_(0.0, std, generator=generator)
            else:
                tensor.uniform_(-bound, bound, generator=generator)

        linear = [module for module in self.f.modules() if isinstance(module, NormalisedLinear)]
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias") or "biases" in name:
                    parameter.zero_()
                elif "projections" in name:
                    parameter.normal_(0.0, projection_std, generator=generator)
                else:
                    draw(parameter)
            # f's weights are drawn once more: the order of the draws is what a seed stands for.
            draw(self.f.r_w_bias)
            draw(self.f.r_r_bias)
            for module in linear:
                draw(module.weight_v)
                module.match_length()

    def clip_norms(self) -> None:
        """Keeps learned lengths within ``norm_clip``: to be called after an optimiser's step."""
        for module in self.f.modules():
            if isinstance(module, NormalisedLinear):
                module.clip_length()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = self.injection.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        dtype: torch.dtype = self.injection.weight.dtype
        return dtype

    def n_parameters(self) -> int:
        """Trainable numbers; what is tied, tables or projections, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def empty_memory(self, batch: int) -> Memory:
        """Memory before the first block."""
        return Memory.empty(
            batch=batch, d_model=self.config.d_model, device=self.device, dtype=self.dtype
        )

    def inject(self, tokens: Tensor) -> Tensor:
        """u = W_u e(tokens) + b_u: ``(…)`` int64 to ``(…, 3·D)``."""
        return self.injection(self.embedding(tokens))  # type: ignore[no-any-return]

    @torch.no_grad()
    def solve_block(
        self,
        tokens: Tensor,
        memory: Memory,
        options: SolverOptions,
        *,
        mem_len: int | None = None,
        weights: EquilibriumWeights | None = None,
        whole_block: bool = False,
    ) -> BlockResult:
        """Fixed points of a block, without gradients.

        Args:
            tokens: ``(B, L)`` int64.
            memory: of the blocks before.
            options: of the solver.
            mem_len: tokens to remember; None for the configuration's.
            weights: folded ones, where the caller has them.
            whole_block: solve each sample's block as one vector, as published, instead of token by
                token.
        """
        injection = self.inject(tokens)
        f = BlockFunction(self.f.fold() if weights is None else weights, memory, injection)
        z_init = injection.new_zeros(*tokens.shape, self.config.d_model)
        solution = solve_block(f, z_init, options, whole_block=whole_block)
        keep = self.config.mem_len if mem_len is None else mem_len
        remembered = memory.extend(solution.z_star, injection, mem_len=keep)
        return BlockResult(solution.z_star, remembered, solution)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of ``(B, L)`` targets at ``(B, L, D)`` states: ``(B, L)``."""
        flat = self.softmax.target_logprob(hidden.flatten(0, -2), targets.flatten())
        return -flat.view(targets.shape)

    def train_block(
        self,
        tokens: Tensor,
        targets: Tensor,
        memory: Memory,
        *,
        forward: SolverOptions,
        backward: SolverOptions,
        whole_block: bool = False,
        matmul_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> TrainingResult:
        """A block with implicit gradients.

        Args:
            tokens: ``(B, L)`` int64.
            targets: ``(B, L)`` int64.
            memory: of the blocks before; the gradient ends there.
            forward: solver of the fixed point.
            backward: solver of the gradient's linear system.
            whole_block: solve both ways as published, each sample's block as one vector.
            matmul_dtype: of the matrix products of f; None for the parameters'.
            generator: source of the dropout masks.
        """
        masks = self._draw_masks(tokens, memory.length, generator)
        injection, weights = self._prepare(tokens, masks, matmul_dtype)
        function_masks = None if masks is None else masks.function
        with torch.no_grad():
            fixed = BlockFunction(weights.detach(), memory, injection.detach(), function_masks)
            z_init = injection.new_zeros(*tokens.shape, self.config.d_model)
            solution = solve_block(fixed, z_init, forward, whole_block=whole_block)
        z = solution.z_star.detach().requires_grad_()  # a leaf, beside the solution's own tensor
        f_z = BlockFunction(weights, memory, injection, function_masks)(z)
        gradient = ImplicitGradient(z, backward, whole_block=whole_block)
        hidden = gradient.attach(f_z)
        if masks is not None:
            hidden = hidden * masks.hidden
        return TrainingResult(
            nll=self.nll(hidden, targets),
            memory=memory.extend(f_z, injection, mem_len=self.config.mem_len),
            solution=solution,
            gradient=gradient,
            f_z=f_z,
            z=z,
        )

    def unroll_block(
        self,
        tokens: Tensor,
        targets: Tensor,
        memory: Memory,
        *,
        depth: int,
        matmul_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> UnrolledResult:
        """A block of plain applications of f from zeros, with ordinary gradients.

        Args:
            tokens: ``(B, L)`` int64.
            targets: ``(B, L)`` int64.
            memory: of the blocks before; the gradient ends there.
            depth: applications of f, at least 1.
            matmul_dtype: of the matrix products of f; None for the parameters'.
            generator: source of the dropout masks.
        """
        if depth < 1:
            raise ConfigError(f"depth must be at least 1, got {depth}")
        masks = self._draw_masks(tokens, memory.length, generator)
        injection, weights = self._prepare(tokens, masks, matmul_dtype)
        f = BlockFunction(weights, memory, injection, None if masks is None else masks.function)
        z = injection.new_zeros(*tokens.shape, self.config.d_model, requires_grad=True)
        f_z = f(z)
        for _ in range(depth - 1):
            z, f_z = f_z, f(f_z)
        hidden = f_z if masks is None else f_z * masks.hidden
        return UnrolledResult(
            nll=self.nll(hidden, targets),
            memory=memory.extend(f_z, injection, mem_len=self.config.mem_len),
            f_z=f_z,
            z=z,
        )

    def _prepare(
        self, tokens: Tensor, masks: _Masks | None, matmul_dtype: torch.dtype | None
    ) -> tuple[Tensor, EquilibriumWeights]:
        """Injection ``(B, L, 3·D)`` and folded weights, both with their graph."""
        embedded = self.embedding(tokens)
        if masks is not None:
            embedded = embedded * masks.embedding
        weights = self.f.fold()
        if matmul_dtype is not None:
            weights = weights.to(self.device, matmul_dtype)
        return self.injection(embedded), weights

    def _draw_masks(
        self, tokens: Tensor, mem_len: int, generator: torch.Generator | None
    ) -> _Masks | None:
        """The masks of a block of ``(B, L)`` tokens; None where nothing is dropped."""
        config = self.config
        batch, length = tokens.shape
        if not self.training or (config.dropout == 0 and config.dropatt == 0):
            return None

        def mask(*shape: int, share: float = config.dropout) -> Tensor:
            kept = torch.empty(shape, device=self.device, dtype=self.dtype)
            return kept.bernoulli_(1 - share, generator=generator) / (1 - share)

        attention_shape = (batch, config.n_head, length, mem_len + length)
        return _Masks(
            embedding=mask(batch, 1, config.d_model),
            hidden=mask(batch, 1, config.d_model),
            function=FunctionDropout(
                position=mask(1, config.d_model),
                attention_output=mask(batch, 1, config.d_model),
                inner=mask(batch, 1, config.d_inner),
                output=mask(batch, 1, config.d_model),
                attention_weight=(
                    mask(*attention_shape, share=config.dropatt) if config.dropatt else None
                ),
            ),
        )
