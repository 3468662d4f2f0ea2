"""A session as it is kept away from the device: plain data, no torch.

Tokens are what a session is; fixed points of the last of them spare solving them again, and keys
and values follow from those, so that nothing else is kept.
"""

import sys
from array import array
from dataclasses import dataclass
from typing import Literal

from server.engine.results import Totals
from server.engine.solve import Solve, Solved

StateFormat = Literal["float32", "bfloat16"]
STATE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by format."""
TOKEN_BYTES = 4
"""Of one token."""


@dataclass(frozen=True, slots=True)
class States:
    """Fixed points of the last tokens of a history, oldest first.

    Attributes:
        format: of the numbers, little-endian.
        rows: tokens.
        d_model: numbers of each.
        data: ``rows · d_model`` numbers.
        solved: how the last one was solved.
    """

    format: StateFormat
    rows: int
    d_model: int
    data: bytes
    solved: Solved

    @property
    def is_whole(self) -> bool:
        """Whether there are as many bytes as there should be."""
        return len(self.data) == self.rows * self.d_model * STATE_BYTES[self.format]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call with an idempotency key was answered.

    Attributes:
        key: of the call.
        request: digest of what was asked.
        data: the answer, to be given again; None where it was too long to be kept.
    """

    key: str
    request: bytes
    data: bytes | None

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.key) + len(self.request) + len(self.data or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All of a session at one moment; ``*_time`` are wall time in seconds since the epoch.

    Attributes:
        session_id: its id.
        model: name of its model.
        fingerprint: of the checkpoint that ``states`` are of.
        owner: whose it is.
        ttl_s: how long it lives unused.
        solve: solver options of calls that name none.
        create_time: when it was made.
        last_used_time: when a call last used it.
        revision: grows with every change.
        totals: over its tokens.
        tokens: ids, see ``pack_tokens``; the priming <eos> is not among them.
        states: of the last tokens, <eos> included where it is one of them; None where they must be
            solved again.
        answers: to calls with idempotency keys, oldest first.
        repairs: how often its memory was found to hold no numbers.
    """

    session_id: str
    model: str
    fingerprint: str
    owner: str
    ttl_s: float
    solve: Solve
    create_time: float
    last_used_time: float
    revision: int
    totals: Totals
    tokens: bytes
    states: States | None = None
    answers: tuple[Answer, ...] = ()
    repairs: int = 0

    @property
    def position(self) -> int:
        """Tokens held."""
        return len(self.tokens) // TOKEN_BYTES

    @property
    def last_token(self) -> int | None:
        """The last token; None before the first."""
        return unpack_tokens(self.tokens[-TOKEN_BYTES:])[0] if self.tokens else None


def pack_tokens(tokens: "list[int] | tuple[int, ...]") -> bytes:
    """Ids as little-endian numbers of 32 bits."""
    return _swapped(array("I", tokens)).tobytes()


def unpack_tokens(data: bytes) -> list[int]:
    """Ids of ``pack_tokens``."""
    return _numbers(data).tolist()


def largest_token(data: bytes) -> int:
    """The largest id of ``pack_tokens``; 0 where there is none."""
    return max(_numbers(data), default=0)


def _numbers(data: bytes) -> "array[int]":
    numbers = array("I")
    numbers.frombytes(data)
    return _swapped(numbers)


def _swapped(numbers: "array[int]") -> "array[int]":
    assert numbers.itemsize == 4, "array('I') has 32 bits on every platform of CPython's"
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
