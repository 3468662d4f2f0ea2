"""The plain baseline of the engine's benchmarks: what the published code computes, as it does it.

Nothing is kept from one call of f to the next: memory and block are projected together, and the
table of relative positions again. A sample's block is one vector, Broyden's method goes from zeros
to a relative residual of 1e-3 or 35 calls, and a batch goes on until its worst stream has
converged. Everything is float32, or the model's own format. Weight norm is folded once.

f and the solver are those of the training benchmark's baseline; the engine's code is not used.

Letters: B streams, n tokens, D ``d_model``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.training import BaselineFunction, broyden
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel


@dataclass(frozen=True, slots=True)
class Stand:
    """How far streams have come.

    Attributes:
        memory: of the last ``mem_len`` tokens.
        hidden: ``(B, D)``, z* of the last token.
    """

    memory: Memory
    hidden: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What scoring gives.

    Attributes:
        logprob: ``(B, n)`` of the targets.
        nfe: calls of f of each block.
        token_evaluations: rows of f computed, over all streams.
        residual_max: largest of a block.
        stand: after the last token.
    """

    logprob: Tensor
    nfe: tuple[int, ...]
    token_evaluations: int
    residual_max: float
    stand: Stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What generation gives.

    Attributes:
        tokens: ``(B, n)``.
        logprob: ``(B, n)`` of them.
        nfe: calls of f of each solve, one fewer than there are tokens.
        stand: after all tokens but the last, which is drawn and not solved.
    """

    tokens: Tensor
    logprob: Tensor
    nfe: tuple[int, ...]
    stand: Stand


class Baseline:
    """A model that scores and generates the plain way."""

    def __init__(self, model: DEQLanguageModel, *, tol: float = 1e-3, max_nfe: int = 35) -> None:
        """Folds the weights; the model keeps its own."""
        self.tol = tol
        self._model, self._max_nfe = model, max_nfe
        self._weights = model.f.fold().detach()

    @torch.no_grad()
    def score(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        stand: Stand | None = None,
        tgt_len: int | None = None,
    ) -> Scores:
        """Scores ``(B, n)`` targets after ``(B, n)`` inputs, block by block, memory carried.

        Args:
            inputs: int64.
            targets: int64.
            stand: to go on from; None for an empty memory.
            tgt_len: tokens of a block; None for the configuration's.
        """
        length = tgt_len or self._model.config.tgt_len
        memory = self._model.empty_memory(len(inputs)) if stand is None else stand.memory
        logprob: list[Tensor] = []
        nfe: list[int] = []
        worst, evaluations = 0.0, 0
        hidden = memory.z_hist
        for begin in range(0, inputs.shape[1], length):
            tokens = inputs[:, begin : begin + length]
            hidden, memory, calls, residual = self._block(tokens, memory)
            logprob.append(-self._model.nll(hidden, targets[:, begin : begin + length]))
            nfe.append(calls)
            evaluations += calls * tokens.numel()
            worst = max(worst, residual)
        return Scores(
            logprob=torch.cat(logprob, dim=1),
            nfe=tuple(nfe),
            token_evaluations=evaluations,
            residual_max=worst,
            stand=Stand(memory, hidden[:, -1]),
        )

    @torch.no_grad()
    def generate(self, stand: Stand, count: int, *, seeds: Sequence[int]) -> Draws:
        """Draws ``count`` tokens of each stream, at temperature 1, one solve for each but the last.

        Args:
            stand: of the prompts.
            count: tokens to draw.
            seeds: of each stream's generator.
        """
        device = stand.hidden.device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        memory, hidden = stand.memory, stand.hidden
        tokens: list[Tensor] = []
        logprob: list[Tensor] = []
        nfe: list[int] = []
        for i in range(count):
            distribution = self._model.softmax.log_prob(hidden)
            drawn = torch.stack(
                [
                    torch.multinomial(row, 1, generator=generator)
                    for row, generator in zip(distribution.exp(), generators, strict=True)
                ]
            )
            tokens.append(drawn)
            logprob.append(distribution.gather(1, drawn))
            if i + 1 < count:
                states, memory, calls, _ = self._block(drawn, memory)
                hidden = states[:, -1]
                nfe.append(calls)
        return Draws(
            tokens=torch.cat(tokens, dim=1),
            logprob=torch.cat(logprob, dim=1),
            nfe=tuple(nfe),
            stand=Stand(memory, hidden),
        )

    def _block(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory, int, float]:
        """States, the next memory, calls of f and the worst residual of a block."""
        injection = self._model.inject(tokens)
        f = BaselineFunction(self._weights, memory, injection)
        z_init = injection.new_zeros(*tokens.shape, self._model.config.d_model)
        solved = broyden(f, z_init, tol=self.tol, max_nfe=self._max_nfe)
        remembered = memory.extend(solved.z_star, injection, mem_len=self._model.config.mem_len)
        return solved.z_star, remembered, solved.nfe, float(solved.residual.max())
