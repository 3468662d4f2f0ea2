"""Stages of a run: so many seconds at one rate, and the requests that are due in them."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.options import KINDS, Mix, Pattern, Size
from loadtest.sizes import Sizes

_BEGINS = 2**31
"""Places that a text may begin at, taken modulo its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request before it is sent.

    Attributes:
        number: in its stage.
        at_s: when it is due, in seconds since the stage's begin.
        kind: one of KINDS.
        words: of its text.
        piece: words of a piece of a stream.
        max_tokens: to generate.
        turns: calls until its session ends, if it is to begin one.
        cancel_s: when it is cancelled, in seconds since it was sent.
        begin: where its text begins.
    """

    number: int
    at_s: float
    kind: str
    words: int
    piece: int = 0
    max_tokens: int = 0
    turns: int = 0
    cancel_s: float = 0.0
    begin: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        number: in the run.
        label: by which it is told from others; repeats share it.
        pattern: how requests arrive.
        rate: requests per second; 0 in a closed loop.
        clients: of a closed loop; else 0.
        times: the rate as a multiple of the measured capacity, or the speed of a trace; else 0.
        seconds: that count.
        warmup_s: before them.
        seed: of everything in it.
        repeat: from 0 on.
        burst: requests of a burst.
        think_s: between the calls of a client.
        searches: whether it only measures the capacity.
    """

    number: int
    label: str
    pattern: Pattern
    rate: float = 0.0
    clients: int = 0
    times: float = 0.0
    seconds: float
    warmup_s: float
    seed: int
    repeat: int = 0
    burst: int = 1
    think_s: float = 0.0
    searches: bool = False

    @property
    def total_s(self) -> float:
        """Warm-up included."""
        return self.warmup_s + self.seconds

    @property
    def is_closed(self) -> bool:
        """Whether clients wait for their answers."""
        return self.pattern == "closed"

    @property
    def load(self) -> float:
        """Rate, or clients of a closed loop."""
        return float(self.clients) if self.is_closed else self.rate

    def to_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)


class Shapes:
    """Draws kinds and sizes."""

    def __init__(self, mix: Mix, size: Size, seed: str) -> None:
        self._random = random.Random(seed)
        self._weights = tuple(itertools.accumulate(mix.weights))
        self._cancel_s = size.cancel_s
        self._words = {
            "score": Sizes.of(size.score),
            "stream": Sizes.of(size.stream),
            "generate": Sizes.of(size.prompt),
            "session": Sizes.of(size.session),
            "fork": Sizes.of(size.session),
            "cancel": Sizes.of(size.prompt),
        }
        self._piece, self._tokens = Sizes.of(size.piece), Sizes.of(size.tokens)
        self._turns = Sizes.of(size.turns)

    def draw(self, number: int, at_s: float) -> Planned:
        """The next request."""
        by = self._random
        (kind,) = by.choices(KINDS, cum_weights=self._weights)
        return Planned(
            number=number,
            at_s=at_s,
            kind=kind,
            words=self._words[kind].draw(by),
            piece=self._piece.draw(by) if kind == "stream" else 0,
            max_tokens=self._tokens.draw(by) if kind in ("generate", "cancel") else 0,
            turns=self._turns.draw(by) if kind in ("session", "fork") else 0,
            cancel_s=by.uniform(0.0, self._cancel_s) if kind == "cancel" else 0.0,
            begin=by.randrange(_BEGINS),
        )


def arrivals(stage: Stage) -> Iterator[float]:
    """Instants at which requests of an open loop are due, in seconds since the stage's begin."""
    by = random.Random(f"{stage.seed}/{stage.number}/arrivals")
    if stage.pattern == "constant":
        for number in itertools.count():
            if (at_s := number / stage.rate) >= stage.total_s:
                return
            yield at_s
    size = stage.burst if stage.pattern == "bursts" else 1
    at_s = 0.0
    while (at_s := at_s + by.expovariate(stage.rate / size)) < stage.total_s:
        yield from itertools.repeat(at_s, size)


def planned(stage: Stage, mix: Mix, size: Size) -> Iterator[Planned]:
    """The requests of an open loop, in order; the same in every process."""
    shapes = Shapes(mix, size, f"{stage.seed}/{stage.number}/shapes")
    for number, at_s in enumerate(arrivals(stage)):
        yield shapes.draw(number, at_s)


def replayed(stage: Stage, trace: Sequence[Planned], size: Size) -> Iterator[Planned]:
    """The requests of a trace, ``stage.times`` as fast as they were recorded.

    Where a session ends cannot be recorded when it begins: it ends as ``size`` says.
    """
    by = random.Random(f"{stage.seed}/{stage.number}/texts")
    turns = Sizes.of(size.turns)
    for number, one in enumerate(trace):
        yield Planned(
            **asdict(one)
            | {
                "number": number,
                "at_s": one.at_s / stage.times,
                "begin": by.randrange(_BEGINS),
                "turns": one.turns or turns.draw(by),
            }
        )
