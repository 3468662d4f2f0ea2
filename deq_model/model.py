"""The whole language model, block by block: for training, evaluation and tests.

Letters: B batch, L tokens of a block, M tokens of memory, D ``d_model``.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from deq_model.adaptive_softmax import AdaptiveLogSoftmax
from deq_model.block import BlockFunction, BlockResult, TrainingResult, UnrolledResult
from deq_model.config import ModelConfig
from deq_model.draws import Draws, Masks, draw_masks
from deq_model.embedding import AdaptiveEmbedding
from deq_model.errors import ConfigError
from deq_model.function import EquilibriumParameters, EquilibriumWeights
from deq_model.gradient import GradientOptions
from deq_model.implicit import ImplicitGradient
from deq_model.memory import Memory
from deq_model.normalised import NormalisedLinear
from deq_model.solvers.loop import solve_block
from deq_model.solvers.options import SolverOptions

__all__ = ["BlockFunction", "BlockResult", "DEQLanguageModel", "TrainingResult", "UnrolledResult"]

Initial = Literal["normal", "uniform"]


class _Injection(nn.Linear):
    """A linear layer without its own first weights: ``reset`` of the model makes them.

    ``nn.utils.skip_init`` does so by tensors without storage, for which torch imports what takes a
    second: a third of the time until a server is ready.
    """

    def reset_parameters(self) -> None:
        """Nothing."""


class DEQLanguageModel(nn.Module):
    """Embedding, injection, equilibrium and softmax."""

    def __init__(self, config: ModelConfig) -> None:
        """Makes the parameters, uninitialised: load a checkpoint or call ``reset``."""
        super().__init__()
        self.config = config
        self.embedding = AdaptiveEmbedding(config)
        self.injection = _Injection(config.d_model, 3 * config.d_model)
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

    def draw(
        self,
        *,
        streams: int,
        tgt_len: int,
        mem_len: int,
        generator: torch.Generator | None = None,
        jacobian: bool = False,
        spectral: bool = False,
    ) -> Draws:
        """The random numbers of a training step, for all its streams: see ``deq_model.draws``.

        Args:
            streams: of the step, those of all ranks and chunks together.
            tgt_len: tokens of the block.
            mem_len: tokens of the memory before it, ``memory.length``.
            generator: source, on the model's device.
            jacobian: whether the step estimates the Jacobian's norm.
            spectral: whether it estimates the spectral radius.
        """
        like = self.injection.weight
        masks = None
        if self.training:
            masks = draw_masks(
                self.config,
                streams=streams,
                tgt_len=tgt_len,
                mem_len=mem_len,
                like=like,
                generator=generator,
            )
        shape = (streams, tgt_len, self.config.d_model)
        jac, spec = (
            like.new_empty(shape).normal_(generator=generator) if asked else None
            for asked in (jacobian, spectral)
        )
        return Draws(streams=streams, masks=masks, jacobian=jac, spectral=spec)

    def train_block(
        self,
        tokens: Tensor,
        targets: Tensor,
        memory: Memory,
        *,
        forward: SolverOptions,
        backward: SolverOptions,
        gradient: GradientOptions | None = None,
        whole_block: bool = False,
        matmul_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> TrainingResult:
        """A block with gradients through its fixed point.

        What is kept for the backward pass does not depend on how many calls of f the solver makes.

        Args:
            tokens: ``(B, L)`` int64.
            targets: ``(B, L)`` int64.
            memory: of the blocks before; the gradient ends there.
            forward: solver of the fixed point.
            backward: solver of the implicit gradient's linear system.
            gradient: its kind, and which states are supervised; None for the implicit gradient of
                the fixed point alone.
            whole_block: solve both ways as published, each sample's block as one vector.
            matmul_dtype: of the matrix products of f; None for the parameters'.
            generator: source of the dropout masks where ``draws`` is None.
            draws: the step's random numbers, those of these B streams.

        Raises:
            ConfigError: ``draws`` are of other streams, or there are more states than calls.
        """
        gradient = GradientOptions() if gradient is None else gradient
        masks = self._masks(tokens, memory, generator, draws)
        f = self._block_function(tokens, memory, masks, matmul_dtype)
        solution = solve_block(
            f.detach(),
            f.injection.new_zeros(*tokens.shape, self.config.d_model),
            forward,
            whole_block=whole_block,
            marks=gradient.marks(forward.max_nfe),
        )
        z = solution.z_star.detach().requires_grad_()  # a leaf, beside the solution's own tensor
        f_z = f(z)
        implicit = ImplicitGradient(z, backward, whole_block=whole_block)
        hidden = implicit.attach(f_z) if gradient.kind == "ift" else gradient.unroll(f, z, f_z)
        nll = self._dropped_nll(hidden, targets, masks)
        objective = nll
        for weight, state in zip(gradient.weights(), solution.marked, strict=True):
            early = gradient.supervised(f, state)
            objective = objective + weight * self._dropped_nll(early, targets, masks)
        return TrainingResult(
            nll=nll,
            objective=objective,
            memory=memory.extend(hidden, f.injection, mem_len=self.config.mem_len),
            solution=solution,
            gradient=implicit,
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
        draws: Draws | None = None,
    ) -> UnrolledResult:
        """A block of plain applications of f from zeros, with ordinary gradients.

        Args:
            tokens: ``(B, L)`` int64.
            targets: ``(B, L)`` int64.
            memory: of the blocks before; the gradient ends there.
            depth: applications of f, at least 1.
            matmul_dtype: of the matrix products of f; None for the parameters'.
            generator: source of the dropout masks where ``draws`` is None.
            draws: the step's random numbers, those of these B streams.
        """
        if depth < 1:
            raise ConfigError(f"depth must be at least 1, got {depth}")
        masks = self._masks(tokens, memory, generator, draws)
        f = self._block_function(tokens, memory, masks, matmul_dtype)
        z = f.injection.new_zeros(*tokens.shape, self.config.d_model, requires_grad=True)
        f_z = f(z)
        for _ in range(depth - 1):
            z, f_z = f_z, f(f_z)
        return UnrolledResult(
            nll=self._dropped_nll(f_z, targets, masks),
            memory=memory.extend(f_z, f.injection, mem_len=self.config.mem_len),
            f_z=f_z,
            z=z,
        )

    def _masks(
        self,
        tokens: Tensor,
        memory: Memory,
        generator: torch.Generator | None,
        draws: Draws | None,
    ) -> Masks | None:
        """Those drawn for the block, or new ones."""
        batch, length = tokens.shape
        if draws is None:
            draws = self.draw(
                streams=batch, tgt_len=length, mem_len=memory.length, generator=generator
            )
        draws.check(batch)
        return draws.masks

    def _block_function(
        self,
        tokens: Tensor,
        memory: Memory,
        masks: Masks | None,
        matmul_dtype: torch.dtype | None,
    ) -> BlockFunction:
        """f of a block, with the graph of its injection and its weights."""
        embedded = self.embedding(tokens)
        if masks is not None:
            embedded = embedded * masks.embedding
        weights = self.f.fold()
        if matmul_dtype is not None:
            weights = weights.to(self.device, matmul_dtype)
        function_masks = None if masks is None else masks.function
        return BlockFunction(weights, memory, self.injection(embedded), function_masks)

    def _dropped_nll(self, hidden: Tensor, targets: Tensor, masks: Masks | None) -> Tensor:
        return self.nll(hidden if masks is None else hidden * masks.hidden, targets)
