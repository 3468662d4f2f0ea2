"""What is measured of each model."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deq_model.solvers.options import SolverOptions
from training.comparing.traces import Band, Reach, band, reaches, trace
from training.evaluating.curves import CurvePoint, curve
from training.evaluating.progress import EvalProgress
from training.evaluating.protocols import open_checkpoint, read_eval_text, streams_of
from training.evaluating.solving import BlockView, EvalOptions
from training.evaluating.statistics import MeanWithError, batch_means
from training.evaluation import Evaluation, evaluate
from training.options.comparison import CompareRun

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_RETRIES = 2
_TOKEN_CALLS = 2
"""Token by token a block is allowed so many times the calls: tokens wait for those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model of a comparison.

    Attributes:
        name: what it is called.
        fingerprint: of its checkpoint.
        parameters: trainable numbers.
        exact: the evaluation at the tight tolerance.
        bits_per_byte: there.
        whole: calls of f a block to each tolerance, whole blocks as one vector, as published.
        by_token: the same token by token, as served, all tokens of a block together.
        whole_band: how the residual of a block falls from call to call.
        token_band: how that of a token does.
        budgets: perplexity and unconverged share against the budget of calls, whole blocks.
        token_ids: ``(streams, n)`` that were scored, to tell whether models can be paired.
    """

    name: str
    fingerprint: str
    parameters: int
    exact: Evaluation
    bits_per_byte: float
    whole: tuple[Reach, ...]
    by_token: tuple[Reach, ...]
    whole_band: Band
    token_band: Band
    budgets: tuple[CurvePoint, ...]
    token_ids: Tensor


@dataclass(slots=True)
class _Traces:
    whole: list[Tensor]
    by_token: list[Tensor]


def measure_model(
    run: CompareRun, folder: Path, name: str, *, progress: EvalProgress
) -> ModelFigures:
    """Everything about one model.

    Raises:
        CheckpointError: it is unusable, or has no tokenizer.
        DataError: the text is unusable, or too short.
        OptionsError: there is no such device.
    """
    loaded, tokenizer = open_checkpoint(folder, device=run.device, dtype=torch.float64)
    text = read_eval_text(run.data, tokenizer).first(run.tokens)
    options = exact_options(run, tgt_len=loaded.config.tgt_len, mem_len=loaded.config.mem_len)
    streams = streams_of(text, options, published=True, eos_id=tokenizer.eos_id)
    traces = _Traces([], [])

    def inspect(view: BlockView) -> None:
        whole, by_token = trace_options(run)
        traces.whole.append(trace(loaded.model, view, whole, whole_block=True))
        traces.by_token.append(trace(loaded.model, view, by_token, whole_block=False))

    stage = progress.stage(f"{name}: exact")
    exact = evaluate(loaded.model, streams.ids, options, progress=stage, inspect=inspect)
    model = loaded.model.float()
    budgets = curve(
        model,
        streams.ids,
        budget_options(run, options),
        "max_nfe",
        sorted(set(run.budgets)),
        stage=_named(progress, name),
    )
    return ModelFigures(
        name=name,
        fingerprint=loaded.fingerprint,
        parameters=model.n_parameters(),
        exact=exact,
        bits_per_byte=float(exact.nll.sum()) / math.log(2) / max(int(streams.size.sum()), 1),
        whole=tuple(reaches(traces.whole, TOLERANCES, budget=run.max_nfe)),
        by_token=tuple(reaches(traces.by_token, TOLERANCES, budget=_TOKEN_CALLS * run.max_nfe)),
        whole_band=band(traces.whole),
        token_band=band(traces.by_token),
        budgets=budgets,
        token_ids=streams.ids,
    )


def _named(progress: EvalProgress, name: str) -> Callable[[str], Callable[[int, int], None]]:
    return lambda stage: progress.stage(f"{name}: {stage}")


def exact_options(run: CompareRun, *, tgt_len: int, mem_len: int) -> EvalOptions:
    """Whole blocks from zeros to the tight tolerance."""
    return EvalOptions(
        batch_size=run.batch_size,
        tgt_len=tgt_len,
        mem_len=mem_len,
        solver=dataclasses.replace(trace_options(run)[0], tol=run.tol),
        whole_block=True,
        retries=_RETRIES,
        radius_blocks=run.trace_blocks,
    )


def budget_options(run: CompareRun, exact: EvalOptions) -> EvalOptions:
    """The same to the budgets' tolerance, with a history as long as the budget."""
    solver = dataclasses.replace(exact.solver, tol=run.budget_tol, depth=exact.solver.max_nfe)
    return dataclasses.replace(exact, solver=solver, retries=0)


def trace_options(run: CompareRun) -> tuple[SolverOptions, SolverOptions]:
    """Of whole blocks, as published, and token by token, as served.

    Both go on until the finest of the tolerances that are told of.
    """
    tol = min(run.tol, *TOLERANCES)
    whole = SolverOptions(tol=tol, max_nfe=run.max_nfe, depth=run.max_nfe, restart=math.inf)
    return whole, SolverOptions(tol=tol, max_nfe=_TOKEN_CALLS * run.max_nfe)


def paired_difference(models: Sequence[ModelFigures]) -> list[MeanWithError | None]:
    """Mean loss of each model less that of the first one, on the same tokens.

    Both find the same passages hard, so the difference is known far better than either loss. None
    for models whose tokens are not those of the first.
    """
    first = models[0]
    return [
        batch_means(model.exact.nll - first.exact.nll, at_least=first.exact.tgt_len)
        if torch.equal(model.token_ids, first.token_ids)
        else None
        for model in models
    ]
