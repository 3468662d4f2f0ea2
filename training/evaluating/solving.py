"""Fixed points of one block of an evaluation: window by window, tried again where it must be."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deq_model.function import EquilibriumWeights
from deq_model.jacobian import spectral_radius
from deq_model.memory import Memory
from deq_model.model import BlockFunction, DEQLanguageModel
from deq_model.solvers.options import SolverOptions, SolverStatus

RADIUS_STEPS = 40
"""Products with the Jacobian per estimate: a complex pair leaves an error of about 1/40."""
RADIUS_STREAMS = 4
"""Streams of a block that are looked at: the graph of f is held for each."""


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
        window: tokens of a block that are solved together, 0 for all. What a token sees does not
            depend on it: the memory before its block, and the block up to it.
        retries: solve a stream's block that has not converged again, so many times at most, with
            twice the budget and depth each time: a stiff block can need far more calls than the
            others, and its error would stay in the memory.
        max_blocks: stop after so many blocks; None for all.
        radius_blocks: blocks, spread evenly, at whose fixed points the Jacobian's spectral radius
            is estimated.
    """

    batch_size: int
    tgt_len: int
    mem_len: int
    solver: SolverOptions
    whole_block: bool = False
    window: int = 0
    retries: int = 0
    max_blocks: int | None = None
    radius_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedBlock:
    """A block of B streams and L tokens.

    Attributes:
        hidden: ``(B, L, D)``, z*.
        memory: for the next block.
        residual: ``(B, L)``.
        status: ``(B, L)`` int64, a ``SolverStatus`` each.
        nfe: calls of f, those of all windows and retries together.
        evaluations: rows that f was computed for.
        residual_by_call: of each first try, ``(calls,)`` mean residual over the rows.
    """

    hidden: Tensor
    memory: Memory
    residual: Tensor
    status: Tensor
    nfe: int
    evaluations: int
    residual_by_call: tuple[Tensor, ...]


def solve_eval_block(
    model: DEQLanguageModel,
    tokens: Tensor,
    memory: Memory,
    weights: EquilibriumWeights,
    options: EvalOptions,
) -> SolvedBlock:
    """Solves ``(B, L)`` tokens of one block after ``memory``."""
    length = tokens.shape[1]
    window = options.window or length
    parts: list[SolvedBlock] = []
    for begin in range(0, length, window):
        end = min(begin + window, length)
        # Within a block the memory grows: the block's later tokens see all of it.
        keep = options.mem_len + (end if end < length else 0)
        part = _with_retries(model, tokens[:, begin:end], memory, weights, options, keep=keep)
        parts.append(part)
        memory = part.memory
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[SolvedBlock]) -> SolvedBlock:
    return SolvedBlock(
        hidden=torch.cat([part.hidden for part in parts], dim=1),
        memory=parts[-1].memory,
        residual=torch.cat([part.residual for part in parts], dim=1),
        status=torch.cat([part.status for part in parts], dim=1),
        nfe=sum(part.nfe for part in parts),
        evaluations=sum(part.evaluations for part in parts),
        residual_by_call=tuple(curve for part in parts for curve in part.residual_by_call),
    )


def _with_retries(
    model: DEQLanguageModel,
    tokens: Tensor,
    memory: Memory,
    weights: EquilibriumWeights,
    options: EvalOptions,
    *,
    keep: int,
) -> SolvedBlock:
    solved = _solve_once(model, tokens, memory, weights, options, keep=keep)
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
            keep=keep,
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
    *,
    keep: int,
) -> SolvedBlock:
    result = model.solve_block(
        tokens,
        memory,
        options.solver,
        mem_len=keep,
        weights=weights,
        whole_block=options.whole_block,
    )
    solution = result.solution
    return SolvedBlock(
        hidden=result.hidden,
        memory=result.memory,
        residual=solution.residual,
        status=solution.status,
        nfe=solution.nfe,
        evaluations=solution.nfe * tokens.numel(),
        residual_by_call=(solution.residual_by_call.double().cpu(),),
    )


def _better(solved: SolvedBlock, again: SolvedBlock, rows: Tensor) -> SolvedBlock:
    """The streams ``rows`` from ``again``, where it left a smaller residual."""
    wins = again.residual.amax(1) < solved.residual[rows].amax(1)
    rows = rows[wins]

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new[wins])

    return SolvedBlock(
        hidden=put(solved.hidden, again.hidden),
        memory=Memory(
            put(solved.memory.z_hist, again.memory.z_hist),
            put(solved.memory.u_hist, again.memory.u_hist),
        ),
        residual=put(solved.residual, again.residual),
        status=put(solved.status, again.status),
        nfe=solved.nfe + again.nfe,
        evaluations=solved.evaluations + again.evaluations,
        residual_by_call=solved.residual_by_call,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """A solved block, and all that its fixed point depends on.

    Attributes:
        tokens: ``(B, L)`` int64.
        memory: of the blocks before.
        weights: folded and detached.
        z_star: ``(B, L, D)``.
    """

    tokens: Tensor
    memory: Memory
    weights: EquilibriumWeights
    z_star: Tensor

    def function(self, model: DEQLanguageModel, streams: slice = slice(None)) -> BlockFunction:
        """f of the block, of some streams."""
        with torch.no_grad():
            injection = model.inject(self.tokens[streams])
        memory = Memory(self.memory.z_hist[streams], self.memory.u_hist[streams])
        return BlockFunction(self.weights, memory, injection)


def block_radius(
    model: DEQLanguageModel, view: BlockView, *, generator: torch.Generator | None = None
) -> Tensor:
    """Spectral radius of the Jacobian of f at the fixed points of a block, one number a stream.

    Args:
        model: whose block it is.
        view: the block.
        generator: source of the power method's first vector; by default one with a fixed seed, so
            that an evaluation gives the same numbers again.

    Returns:
        ``(min(B, RADIUS_STREAMS),)`` float64 on the CPU.
    """
    some = slice(0, RADIUS_STREAMS)
    f = view.function(model, some)
    if generator is None:
        generator = torch.Generator(view.z_star.device).manual_seed(0)
    with torch.enable_grad():
        z = view.z_star[some].detach().clone().requires_grad_()
        radius = spectral_radius(f(z), z, steps=RADIUS_STEPS, generator=generator)
    return radius.detach().double().cpu()
