"""States that predict the next token, scored together: those of all jobs in one product."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.adaptive_softmax import ClusteredLogSoftmax, Head
from server.engine.next_token import NextToken
from server.engine.requests import ScoreJob
from server.engine.results import TokenLogprob
from server.engine.solve import Solved
from server.engine.work import Run

_ROWS = 256
"""Log-probabilities computed at once: a run may take over many tokens that others have solved."""
_FULL_ROWS = 32
"""Whole distributions computed at once, for alternatives: bounds the memory of long requests."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A state that predicts the next token of a run: ``target``, or one to be drawn.

    Attributes:
        run: whose token it is.
        hidden: ``(D,)``, the state.
        solved: how the state was solved.
        target: the token; None where it is still to be drawn.
    """

    run: Run
    hidden: Tensor
    solved: Solved
    target: int | None


def score(softmax: ClusteredLogSoftmax, predictions: Seq[Prediction]) -> None:
    """Gives each prediction's run the log-probability of its target, which must be known.

    All of them, or it raises and none has any.
    """
    tokens: list[TokenLogprob] = []
    for begin in range(0, len(predictions), _ROWS):
        tokens += _score(softmax, predictions[begin : begin + _ROWS])
    for prediction, token in zip(predictions, tokens, strict=True):
        prediction.run.tokens.append(token)


def _score(softmax: ClusteredLogSoftmax, predictions: Seq[Prediction]) -> list[TokenLogprob]:
    hidden = torch.stack([p.hidden for p in predictions])
    targets = torch.tensor([p.target for p in predictions], device=hidden.device)
    logprobs = softmax.target_logprob(hidden, targets).tolist()
    alternatives = _alternatives(softmax, predictions)
    found = []
    for i, (prediction, logprob) in enumerate(zip(predictions, logprobs, strict=True)):
        assert prediction.target is not None
        found.append(
            TokenLogprob(prediction.target, logprob, alternatives.get(i, ()), prediction.solved)
        )
    return found


def _alternatives(
    softmax: ClusteredLogSoftmax, predictions: Seq[Prediction]
) -> dict[int, tuple[tuple[int, float], ...]]:
    """The likeliest words, best first, by the index of the predictions whose job wants them."""
    wanted = {
        i: p.run.work.job.top_k
        for i, p in enumerate(predictions)
        if isinstance(p.run.work.job, ScoreJob) and p.run.work.job.top_k > 0
    }
    found: dict[int, tuple[tuple[int, float], ...]] = {}
    order = list(wanted)
    for begin in range(0, len(order), _FULL_ROWS):
        part = order[begin : begin + _FULL_ROWS]
        full = softmax.log_prob(torch.stack([predictions[i].hidden for i in part]))
        most = min(max(wanted[i] for i in part), full.shape[1])
        best, ids = full.topk(most, dim=1)
        for i, row, row_ids in zip(part, best.tolist(), ids.tolist(), strict=True):
            found[i] = tuple(zip(row_ids, row, strict=True))[: wanted[i]]
    return found


def sources(softmax: ClusteredLogSoftmax, states: Seq[Tensor]) -> list[NextToken]:
    """The distributions after states, ``(D,)`` each; the heads of all are made in one product."""
    if not states:
        return []
    heads = softmax.head(torch.stack(list(states)))
    return [
        NextToken(softmax, hidden, Head(heads.words[i : i + 1], heads.clusters[i : i + 1]))
        for i, hidden in enumerate(states)
    ]
