"""Perplexity on a text: contiguous streams, blocks along time, memory carried."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deq_model.function import EquilibriumWeights
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions, SolverStatus
from training.data import Block, Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The protocol of an evaluation.

    Attributes:
        batch_size: streams that the text is cut into.
        tgt_len: tokens of a block.
        mem_len: tokens of memory before a block.
        solver: of the fixed point.
        whole_block: solve each stream's block as one vector, as published, instead of token by
            token.
        retries: solve a stream's block that has not converged again, so many times at most, with
            twice the budget and depth each time: a stiff block can need far more calls than the
            others, and its error would stay in the memory.
        max_blocks: stop after so many blocks; None for all.
    """

    batch_size: int
    tgt_len: int
    mem_len: int
    solver: SolverOptions
    whole_block: bool = False
    retries: int = 0
    max_blocks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        nll: ``(batch_size, n)`` float64 on the CPU, of every target, in the order of the text.
        nfe: mean calls of f per block, those of retries included.
        unconverged: tokens that did not come under the tolerance.
        worst_residual: the largest residual left at any token.
    """

    nll: Tensor
    nfe: float
    unconverged: int
    worst_residual: float

    @property
    def scored_tokens(self) -> int:
        """Number of targets."""
        return self.nll.numel()

    @property
    def mean_nll(self) -> float:
        """In nats per token."""
        return float(self.nll.mean())

    @property
    def perplexity(self) -> float:
        """The exponential of the mean; inf where that is beyond a float."""
        return math.exp(self.mean_nll) if self.mean_nll < 700 else math.inf


def evaluate(
    model: DEQLanguageModel,
    ids: Tensor,
    options: EvalOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores every token but the first of each stream.

    Args:
        model: in evaluation mode, or dropout would be on.
        ids: ``(n,)`` int64 tokens of the text.
        options: the protocol.
        progress: called with tokens done and tokens in all, per stream.

    Raises:
        DataError: the text is too short for so many streams.
    """
    streams = Streams(ids, batch_size=options.batch_size)
    memory = model.empty_memory(options.batch_size)
    weights = model.f.fold().detach()
    parts: list[Tensor] = []
    nfe, unconverged, worst = 0, 0, 0.0
    for block in streams.blocks(tgt_len=options.tgt_len):
        if len(parts) == options.max_blocks:
            break
        solved = _solve(model, block, memory, weights, options)
        parts.append(_nll(model, solved.hidden, block.targets))
        memory = solved.memory
        nfe += solved.nfe
        unconverged += int((solved.status != SolverStatus.CONVERGED).sum())
        worst = max(worst, float(solved.residual.max()))
        if progress is not None:
            progress(block.begin + block.tokens.shape[1], streams.length)
    return Evaluation(
        nll=torch.cat(parts, dim=1),
        nfe=nfe / len(parts),
        unconverged=unconverged,
        worst_residual=worst,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    hidden: Tensor
    memory: Memory
    residual: Tensor
    status: Tensor
    nfe: int


def _solve(
    model: DEQLanguageModel,
    block: Block,
    memory: Memory,
    weights: EquilibriumWeights,
    options: EvalOptions,
) -> _Solved:
    tokens = block.tokens.to(model.device)
    solved = _solve_once(model, tokens, memory, weights, options)
    for retry in range(1, options.retries + 1):
        left = (solved.status != SolverStatus.CONVERGED).any(1).nonzero().squeeze(1)
        if len(left) == 0:
            break
        again = _solve_once(
            model,
            tokens[left],
            Memory(memory.z_hist[left], memory.u_hist[left]),
            weights,
            _patient(options, times=2**retry),
        )
        solved = _better(solved, again, left)
    return solved


def _patient(options: EvalOptions, *, times: int) -> EvalOptions:
    solver = options.solver
    solver = replace(solver, max_nfe=solver.max_nfe * times, depth=solver.depth * times)
    return replace(options, solver=solver)


def _solve_once(
    model: DEQLanguageModel,
    tokens: Tensor,
    memory: Memory,
    weights: EquilibriumWeights,
    options: EvalOptions,
) -> _Solved:
    result = model.solve_block(
        tokens,
        memory,
        options.solver,
        mem_len=options.mem_len,
        weights=weights,
        whole_block=options.whole_block,
    )
    return _Solved(
        hidden=result.hidden,
        memory=result.memory,
        residual=result.solution.residual,
        status=result.solution.status,
        nfe=result.solution.nfe,
    )


def _better(solved: _Solved, again: _Solved, rows: Tensor) -> _Solved:
    """The streams ``rows`` from ``again``, where it left a smaller residual."""
    wins = again.residual.amax(1) < solved.residual[rows].amax(1)
    rows = rows[wins]

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new[wins])

    return _Solved(
        hidden=put(solved.hidden, again.hidden),
        memory=Memory(
            put(solved.memory.z_hist, again.memory.z_hist),
            put(solved.memory.u_hist, again.memory.u_hist),
        ),
        residual=put(solved.residual, again.residual),
        status=put(solved.status, again.status),
        nfe=solved.nfe + again.nfe,
    )


@torch.no_grad()
def _nll(model: DEQLanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    return model.nll(hidden, targets.to(model.device)).double().cpu()
