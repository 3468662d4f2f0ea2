"""Perplexity against what is spent: the budget of calls, the length of the memory."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from deq_model.model import DEQLanguageModel
from training.evaluating.solving import EvalOptions
from training.evaluation import Evaluation, evaluate

Abscissa = Literal["max_nfe", "mem_len"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One evaluation of a curve.

    Attributes:
        value: of what the curve is over.
        perplexity: per token.
        perplexity_error: its standard error, nan where the text is too short to tell.
        unconverged_share: of the tokens.
        mean_residual: over the tokens.
        nfe: mean calls of f a block.
        seconds: that it took.
    """

    value: int
    perplexity: float
    perplexity_error: float
    unconverged_share: float
    mean_residual: float
    nfe: float
    seconds: float

    @classmethod
    def of(cls, value: int, found: Evaluation) -> "CurvePoint":
        """What a curve keeps of an evaluation."""
        return cls(
            value=value,
            perplexity=found.perplexity,
            perplexity_error=found.perplexity_error,
            unconverged_share=found.unconverged_share,
            mean_residual=found.mean_residual,
            nfe=found.nfe,
            seconds=found.seconds,
        )


def curve(
    model: DEQLanguageModel,
    ids: Tensor,
    options: EvalOptions,
    over: Abscissa,
    values: Sequence[int],
    *,
    stage: Callable[[str], Callable[[int, int], None]],
) -> tuple[CurvePoint, ...]:
    """Evaluates once for each value; everything else is as ``options`` say.

    Args:
        model: in evaluation mode.
        ids: as for ``evaluate``.
        options: of the evaluation; without retries where the curve is over the budget, since they
            would add to it.
        over: what is varied.
        values: of it.
        stage: is told what is done, and gives a progress for it.
    """
    points = []
    for value in values:
        changed = _changed(options, over, value)
        found = evaluate(model, ids, changed, progress=stage(f"{over} {value}"))
        points.append(CurvePoint.of(value, found))
    return tuple(points)


def _changed(options: EvalOptions, over: Abscissa, value: int) -> EvalOptions:
    plain = dataclasses.replace(options, radius_blocks=0)
    if over == "mem_len":
        return dataclasses.replace(plain, mem_len=value)
    solver = options.solver
    depth = value if solver.depth == solver.max_nfe else solver.depth
    solver = dataclasses.replace(solver, max_nfe=value, depth=depth)
    return dataclasses.replace(plain, solver=solver, retries=0)
