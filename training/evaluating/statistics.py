"""How sure a mean over a text is.

Losses of neighbouring tokens go together: a hard passage is hard for a hundred tokens. Taking
every token for itself makes the error too small. So the text is cut into long consecutive
batches, and the error comes from how much the means of the batches differ (batch means). A batch
of about √n of n tokens is long beside what ties tokens together, and there are still √n of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_EXPONENT = 700.0
"""Above it an exponential is beyond a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanWithError:
    """A mean over the tokens of a text.

    Attributes:
        mean: over all tokens.
        error: its standard error; nan where there are fewer than two batches.
        batches: consecutive pieces of the text that the error comes from.
    """

    mean: float
    error: float
    batches: int


def batch_means(values: Tensor, *, at_least: int = 1) -> MeanWithError:
    """The mean of ``values`` ``(streams, positions)``, with the error by batch means.

    Batches do not cross streams, and within a stream their lengths differ by one at most. The
    error is that of a ratio, sum of values over number of tokens, so that batches count by length.

    Args:
        values: one number a token, in the order of the text.
        at_least: shortest batch, where the text allows it.
    """
    values = values.double()
    total = values.numel()
    mean = float(values.mean())
    positions = values.shape[1]
    length = max(at_least, math.isqrt(total), 1)
    per_stream = max(1, positions // length)
    pieces = [piece for stream in values for piece in stream.tensor_split(per_stream)]
    batches = len(pieces)
    if batches < 2:
        return MeanWithError(mean=mean, error=math.nan, batches=batches)
    excess = torch.stack([(piece - mean).sum() for piece in pieces])
    variance = float(excess.square().sum()) * batches / (batches - 1) / total**2
    return MeanWithError(mean=mean, error=math.sqrt(variance), batches=batches)


def exponential(value: float) -> float:
    """``e^value``; inf where that is beyond a float."""
    return math.exp(value) if value < _LARGEST_EXPONENT else math.inf


def exponential_error(mean: MeanWithError) -> float:
    """Standard error of ``e^mean``, by the delta method: ``e^mean`` times that of the mean."""
    return exponential(mean.mean) * mean.error
