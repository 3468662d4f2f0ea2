"""Perplexity on a text: contiguous streams, blocks along time, memory carried."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverStatus
from training.data import Streams
from training.evaluating.solving import (
    BlockView,
    EvalOptions,
    SolvedBlock,
    block_radius,
    solve_eval_block,
)
from training.evaluating.statistics import (
    MeanWithError,
    batch_means,
    exponential,
    exponential_error,
)

__all__ = ["BlockView", "EvalOptions", "Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found. Letters: B streams, n targets of each, in the order of the text.

    Attributes:
        nll: ``(B, n)`` float64 on the CPU, of every target, in nats.
        residual: ``(B, n)`` float64 on the CPU, of the state that each target was predicted from.
        status: ``(B, n)`` int64 on the CPU, a ``SolverStatus`` each.
        blocks: blocks of each stream.
        tgt_len: tokens of a block.
        nfe: mean calls of f per block, those of retries included.
        evaluations: rows that f was computed for, per target.
        residual_by_call: mean residual after each call of f of a block's first try; the mean over
            blocks, one that needed fewer calls counting with its last value.
        radius: estimates of the Jacobian's spectral radius, one for each stream and block that was
            looked at.
        seconds: that it took, those for the radius left out.
    """

    nll: Tensor
    residual: Tensor
    status: Tensor
    blocks: int
    tgt_len: int
    nfe: float
    evaluations: float
    residual_by_call: tuple[float, ...]
    radius: tuple[float, ...]
    seconds: float

    @property
    def scored_tokens(self) -> int:
        """Number of targets."""
        return self.nll.numel()

    @property
    def mean(self) -> MeanWithError:
        """Of the losses, in nats per token, with its standard error by batch means."""
        return batch_means(self.nll, at_least=self.tgt_len)

    @property
    def mean_nll(self) -> float:
        """In nats per token."""
        return float(self.nll.mean())

    @property
    def perplexity(self) -> float:
        """The exponential of the mean; inf where that is beyond a float."""
        return exponential(self.mean_nll)

    @property
    def perplexity_error(self) -> float:
        """Its standard error; nan where the text is too short to tell."""
        return exponential_error(self.mean)

    @property
    def converged(self) -> Tensor:
        """``(B, n)`` bool."""
        return self.status == SolverStatus.CONVERGED

    @property
    def unconverged(self) -> int:
        """Tokens that did not come under the tolerance."""
        return int((~self.converged).sum())

    @property
    def unconverged_share(self) -> float:
        """The same, of all tokens."""
        return self.unconverged / self.scored_tokens

    @property
    def mean_residual(self) -> float:
        """Over all tokens."""
        return float(self.residual.mean())

    @property
    def worst_residual(self) -> float:
        """The largest residual left at any token."""
        return float(self.residual.max())

    @property
    def tokens_per_s(self) -> float:
        """Targets scored per second."""
        return self.scored_tokens / max(self.seconds, 1e-9)


def evaluate(
    model: DEQLanguageModel,
    ids: Tensor,
    options: EvalOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
    inspect: Callable[[BlockView], None] | None = None,
) -> Evaluation:
    """Scores every token but the first of each stream.

    Args:
        model: in evaluation mode, or dropout would be on.
        ids: ``(n,)`` int64 tokens of the text.
        options: the protocol.
        progress: called with tokens done and tokens in all, per stream.
        inspect: called at the blocks whose spectral radius is estimated.

    Raises:
        DataError: the text is too short for so many streams.
    """
    streams = Streams(ids, batch_size=options.batch_size)
    count = n_blocks(streams.length, options)
    looked_at = spread(count, options.radius_blocks)
    total = min(count * options.tgt_len, streams.length)
    memory = model.empty_memory(options.batch_size)
    weights = model.f.fold().detach()
    found = _Found()
    for index, block in enumerate(streams.blocks(tgt_len=options.tgt_len)):
        if index == count:
            break
        began = time.perf_counter()
        tokens = block.tokens.to(model.device)
        solved = solve_eval_block(model, tokens, memory, weights, options)
        nll = _nll(model, solved.hidden, block.targets)
        found.add(solved, nll, seconds=time.perf_counter() - began)
        if index in looked_at:
            view = BlockView(tokens=tokens, memory=memory, weights=weights, z_star=solved.hidden)
            found.radius += block_radius(model, view).tolist()
            if inspect is not None:
                inspect(view)
        memory = solved.memory
        if progress is not None:
            progress(block.begin + tokens.shape[1], total)
    return found.summary(tgt_len=options.tgt_len)


def n_blocks(length: int, options: EvalOptions) -> int:
    """Blocks of streams of ``length`` targets that ``options`` wants."""
    blocks = math.ceil(length / options.tgt_len)
    return blocks if options.max_blocks is None else min(blocks, options.max_blocks)


def spread(count: int, wanted: int) -> set[int]:
    """At most ``wanted`` of ``count`` indices, evenly spread; the last ones have most memory."""
    return {count * (i + 1) // wanted - 1 for i in range(wanted)} - {-1} if wanted else set()


class _Found:
    """What is gathered on the way."""

    def __init__(self) -> None:
        self._nll: list[Tensor] = []
        self._residual: list[Tensor] = []
        self._status: list[Tensor] = []
        self._curves: list[Tensor] = []
        self._nfe, self._evaluations, self._seconds = 0, 0, 0.0
        self.radius: list[float] = []

    def add(self, solved: SolvedBlock, nll: Tensor, *, seconds: float) -> None:
        """Counts a block; its states are not kept."""
        self._nll.append(nll)
        self._residual.append(solved.residual.double().cpu())
        self._status.append(solved.status.cpu())
        self._curves += solved.residual_by_call
        self._nfe += solved.nfe
        self._evaluations += solved.evaluations
        self._seconds += seconds

    def summary(self, *, tgt_len: int) -> Evaluation:
        nll = torch.cat(self._nll, dim=1)
        return Evaluation(
            nll=nll,
            residual=torch.cat(self._residual, dim=1),
            status=torch.cat(self._status, dim=1),
            blocks=len(self._nll),
            tgt_len=tgt_len,
            nfe=self._nfe / len(self._nll),
            evaluations=self._evaluations / nll.numel(),
            residual_by_call=mean_curve(self._curves),
            radius=tuple(self.radius),
            seconds=self._seconds,
        )


def mean_curve(curves: Sequence[Tensor]) -> tuple[float, ...]:
    """The mean of curves ``(calls,)`` of different lengths, shorter ones going on at their end."""
    longest = max(len(curve) for curve in curves)
    padded = [torch.cat([c, c[-1:].expand(longest - len(c))]) for c in curves]
    mean: list[float] = torch.stack(padded).mean(0).tolist()
    return tuple(mean)


@torch.no_grad()
def _nll(model: DEQLanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    return model.nll(hidden, targets.to(model.device)).double().cpu()
