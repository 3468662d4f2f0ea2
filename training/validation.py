"""The perplexity on the validation text, measured by all ranks together."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from training.distributed import Ranks
from training.evaluation import EvalOptions, evaluate
from training.options.train import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
        mean_nll: in nats per token.
        perplexity: its exponential; inf where that is beyond a float.
        nfe: mean calls of f per block.
        unconverged: tokens that did not come under the tolerance.
        scored_tokens: all of them.
        residual_by_call: mean residual over the tokens after call 1, 2, … of f.
    """

    mean_nll: float
    perplexity: float
    nfe: float
    unconverged: int
    scored_tokens: int
    residual_by_call: tuple[float, ...]


def batch_size(options: TrainOptions) -> int:
    """Streams that the validation text is cut into."""
    return options.valid.batch_size or options.data.batch_size


def solver(options: TrainOptions) -> SolverOptions:
    """The forward solver, with the tolerance and the budget of measurements."""
    forward, valid = options.forward, options.valid
    return replace(forward, tol=valid.tol or forward.tol, max_nfe=valid.max_nfe or forward.max_nfe)


def measure(
    model: DEQLanguageModel, ids: Tensor, options: TrainOptions, ranks: Ranks
) -> Measurement:
    """Measures on ``(n,)`` ids; each rank takes its share of the streams."""
    batch, budget = batch_size(options), solver(options).max_nfe
    share, length = ranks.share(batch), len(ids) // batch
    figures = [0.0] * (5 + budget)
    if share.stop > share.start:
        own = ids[share.start * length : share.stop * length]
        figures = _figures(model, own, _protocol(options, streams=share.stop - share.start))
    total = ranks.exchange(figures + [0.0] * (5 + budget - len(figures)))
    nll, count, nfe, unconverged, _ = (sum(column) for column in list(zip(*total, strict=True))[:5])
    calls = max(int(row[4]) for row in total)
    return Measurement(
        mean_nll=nll / count,
        perplexity=math.exp(nll / count) if nll / count < 700 else math.inf,
        nfe=nfe / count,
        unconverged=int(unconverged),
        scored_tokens=int(count),
        residual_by_call=tuple(
            sum(_at(row, call) for row in total) / count for call in range(calls)
        ),
    )


def _at(row: list[float], call: int) -> float:
    """A rank's residual after a call, times its tokens; after its last call it stays."""
    return row[5 + min(call, int(row[4]) - 1)] if row[4] else 0.0


def _figures(model: DEQLanguageModel, ids: Tensor, protocol: EvalOptions) -> list[float]:
    """Sums over a rank's tokens, the number of its calls, and the residual after each."""
    model.eval()
    try:
        found = evaluate(model, ids, protocol)
    finally:
        model.train()
    count, curve = found.scored_tokens, found.residual_by_call
    return [
        float(found.nll.sum()),
        count,
        found.nfe * count,
        found.unconverged,
        len(curve),
        *(residual * count for residual in curve),
    ]


def _protocol(options: TrainOptions, *, streams: int) -> EvalOptions:
    valid, model = options.valid, options.model
    return EvalOptions(
        batch_size=streams,
        tgt_len=model.tgt_len if valid.tgt_len is None else valid.tgt_len,
        mem_len=model.mem_len if valid.mem_len is None else valid.mem_len,
        solver=solver(options),
        whole_block=options.equilibrium.whole_block,
    )
