"""Helpers of the tokenizer tests: cutting texts, and reading streams to their end."""

from collections.abc import Iterable
from itertools import pairwise

from deq_model.tokenizers.base import Encoding, StreamEncoder


def cut(text: str, positions: Iterable[int]) -> list[str]:
    """The text in pieces, cut at the positions that lie inside it."""
    bounds = [0, *sorted(min(position, len(text)) for position in positions), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


def feed_all(encoder: StreamEncoder, pieces: Iterable[str]) -> Encoding:
    """Everything that the stream returns for the pieces, as one encoding."""
    parts = [encoder.feed(piece) for piece in pieces]
    parts.append(encoder.flush())
    return Encoding(
        ids=tuple(i for part in parts for i in part.ids),
        begin=tuple(i for part in parts for i in part.begin),
        end=tuple(i for part in parts for i in part.end),
        unknown=sum(part.unknown for part in parts),
    )
