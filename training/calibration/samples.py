"""What a map is fitted to: tokens, the fixed points before them, and their own.

Letters: B streams, T tokens of each, n samples, D ``d_model``, V different tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.model import DEQLanguageModel
from training.errors import DataError

LEAST_TOKENS = 32
"""Fewer tokens of a stream are no text: most would be the first ones of a session."""

TUNING_EVERY = 8
"""One stream of so many chooses the penalty, or the epoch, and is not fitted on."""


def even_streams(ids: Tensor, *, tokens: int, streams: int, eos_id: int, name: str) -> Tensor:
    """Pieces of a text, evenly spread, each begun with ``<eos>`` as a session is.

    Args:
        ids: ``(n,)`` tokens of any integer type, in memory or mapped into it.
        tokens: how many to take; all where there are fewer.
        streams: pieces to take them in; fewer where they would be shorter than 32 tokens.
        eos_id: first token of each.
        name: of the text, for messages.

    Returns:
        ``(B, T + 1)`` int64.

    Raises:
        DataError: there are not even two such pieces.
    """
    tokens = min(tokens, len(ids))
    streams = min(streams, tokens // LEAST_TOKENS)
    if streams < 2:
        raise DataError(f"{name} must have at least {2 * LEAST_TOKENS} tokens, got {tokens}")
    length, every = tokens // streams, len(ids) // streams
    parts = torch.stack([ids[i * every : i * every + length].long() for i in range(streams)])
    return torch.cat([parts.new_full((streams, 1), eos_id), parts], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples in the order of their streams; injections are kept once for each different token.

    Attributes:
        token: ``(n,)`` int64, index into ``injections``.
        previous: ``(n, D)`` z* of the tokens before, zeros at the start of a stream.
        z_star: ``(n, D)``.
        injections: ``(V, 3·D)``.
    """

    token: Tensor
    previous: Tensor
    z_star: Tensor
    injections: Tensor

    def __len__(self) -> int:
        return len(self.token)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
        """(injection, previous, z_star) of so many samples at a time, in ``order`` ``(n,)``."""
        for begin in range(0, len(self), size):
            part = slice(begin, begin + size)
            index = torch.arange(len(self))[part] if order is None else order[part]
            index = index.to(self.token.device)
            yield self.injections[self.token[index]], self.previous[index], self.z_star[index]


@torch.no_grad()
def samples_of(
    model: DEQLanguageModel, tokens: Tensor, z_star: Tensor, *, tuning_every: int = TUNING_EVERY
) -> tuple[Samples, Samples]:
    """Samples to fit on and samples to choose by.

    Args:
        model: whose injection to use.
        tokens: ``(B, T)`` int64.
        z_star: ``(B, T, D)`` their fixed points.
        tuning_every: one stream of so many is to choose by; 1 for all.
    """
    different, token = tokens.to(z_star.device).unique(return_inverse=True)
    injections = model.inject(different)
    previous = torch.cat([torch.zeros_like(z_star[:, :1]), z_star[:, :-1]], dim=1)
    number = torch.arange(len(tokens), device=z_star.device)
    every = min(tuning_every, len(tokens))
    tuning = number % every == every - 1

    def part(which: Tensor) -> Samples:
        return Samples(
            token=token[which].flatten(),
            previous=previous[which].flatten(0, 1),
            z_star=z_star[which].flatten(0, 1),
            injections=injections,
        )

    return part(~tuning), part(tuning)
