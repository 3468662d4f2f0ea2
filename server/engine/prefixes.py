"""What is known of the first tokens of texts, so that texts that begin alike are solved once.

Pure bookkeeping: no torch, no clock. A *trace* is what one run has solved so far: tokens behind a
common history, and a state for each of the first of them. Traces of runs that go on are open; when
a run ends its trace is kept, until others need the room.

States make the memory behind any number of the tokens anew, without a call of f, so that a trace
helps every text that begins like it, however soon the two part.
"""

from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.engine.solve import Solved

S = TypeVar("S")

LEAST_WAIT = 4
"""Tokens that waiting for another run must save: fewer are solved sooner beside it."""
_LOOSEST = 0.1
"""Nobody waits for a run whose tolerance is tighter than this times its own: that one is slower."""
_PART = 4
"""The longest trace takes this part of the room for kept ones."""


@dataclass(slots=True, eq=False)
class Trace(Generic[S]):
    """Tokens of a run, and the states of the first of them.

    Attributes:
        key: of the history before the tokens, and of who may know of it.
        tokens: of the run, as far as they are known; they may become more.
        tol: tolerance to which the run solves.
        priority: of the run.
        states: of the first tokens.
        solved: how each of them was solved.
        is_open: whether the run goes on.
    """

    key: Hashable
    tokens: list[int]
    tol: float
    priority: int
    states: list[S] = field(default_factory=list)
    solved: list[Solved] = field(default_factory=list)
    is_open: bool = True

    @property
    def worst(self) -> float:
        """Largest residual of its states."""
        return max((solved.residual for solved in self.solved), default=0.0)

    def usable(self, tokens: Seq[int], tol: float) -> int:
        """How many of the first ``tokens`` it has states for, all within ``tol``."""
        most = common(self.tokens[: len(self.states)], tokens)
        return next((i for i in range(most) if self.solved[i].residual > tol), most)


@dataclass(frozen=True, slots=True)
class Lead(Generic[S]):
    """Another run that is solving the first ``count`` tokens of a text."""

    trace: Trace[S]
    count: int


class Prefixes(Generic[S]):
    """Traces by key; those of ended runs make room for each other, the one unused longest first."""

    def __init__(self, *, max_tokens: int) -> None:
        """Keeps states of ``max_tokens`` tokens at most, beside those of runs that go on."""
        self._max_tokens = max_tokens
        self._kept: dict[Trace[S], None] = {}  # the least recently used one first
        self._open: list[Trace[S]] = []
        self._tokens = 0

    @property
    def kept_tokens(self) -> int:
        """Tokens whose states are kept, beside those of runs that go on."""
        return self._tokens

    @property
    def longest(self) -> int:
        """Most states that a trace should have."""
        return max(1, self._max_tokens // _PART)

    def open(self, trace: Trace[S]) -> None:
        """Notes a run that begins."""
        self._open.append(trace)

    def find(self, trace: Trace[S]) -> tuple[list[S], list[Solved]]:
        """States of as many of its first tokens as are known within its tolerance."""
        best: Trace[S] | None = None
        most = 0
        for other in self._others(trace):
            count = other.usable(trace.tokens, trace.tol)
            if count > most:
                best, most = other, count
        if best is None:
            return [], []
        self._touch(best)
        return best.states[:most], best.solved[:most]

    def lead(self, trace: Trace[S], *, known: int) -> Lead[S] | None:
        """A run worth waiting for by one that has states of its first ``known`` tokens.

        It is solving more of the same tokens, to the tolerance that is wanted or a bit tighter,
        and has no less priority. One that waits itself may be waited for: it began earlier.
        """
        best: Lead[S] | None = None
        for other in self._open:
            fits = _LOOSEST * trace.tol <= other.tol <= trace.tol
            if other is trace or other.key != trace.key or other.priority < trace.priority:
                continue
            count = min(common(other.tokens, trace.tokens), self.longest)
            enough = max(known + LEAST_WAIT, best.count + 1 if best is not None else 0)
            if fits and count >= enough and is_hopeful(other, trace, count):
                best = Lead(other, count)
        return best

    def close(self, trace: Trace[S]) -> None:
        """Keeps what a run that has ended knew, unless as much is known already."""
        trace.is_open = False
        self._open.remove(trace)
        size = len(trace.states)
        trace.tokens = trace.tokens[:size]
        if not 0 < size <= self._max_tokens:
            return
        for other in [kept for kept in self._kept if kept.key == trace.key]:
            shared = common(other.tokens, trace.tokens)
            if shared == size and other.worst <= trace.worst:
                self._touch(other)
                return
            if shared == len(other.tokens) and trace.worst <= other.worst:
                self._drop(other)
        self._kept[trace] = None
        self._tokens += size
        while self._tokens > self._max_tokens:
            self._drop(next(iter(self._kept)))

    def forget(self, key: Hashable) -> None:
        """Drops what is kept behind a history that nothing will follow any more."""
        for trace in [kept for kept in self._kept if kept.key == key]:
            self._drop(trace)

    def problems(self) -> list[str]:
        """Where the count of kept tokens is not what is kept."""
        kept = sum(len(trace.states) for trace in self._kept)
        if kept == self._tokens <= self._max_tokens:
            return []
        most = self._max_tokens
        return [f"the prefix cache counts {self._tokens} tokens of {most}, and keeps {kept}"]

    def clear(self) -> None:
        """Drops all that is kept."""
        self._kept.clear()
        self._tokens = 0

    def _others(self, trace: Trace[S]) -> Iterator[Trace[S]]:
        for other in (*self._kept, *self._open):
            if other is not trace and other.key == trace.key:
                yield other

    def _touch(self, trace: Trace[S]) -> None:
        if trace in self._kept:
            del self._kept[trace]
            self._kept[trace] = None

    def _drop(self, trace: Trace[S]) -> None:
        del self._kept[trace]
        self._tokens -= len(trace.states)


def is_hopeful(leader: Trace[S], follower: Trace[S], count: int) -> bool:
    """Whether all of the leader's states so far are good enough for the follower's first tokens."""
    done = min(len(leader.states), count)
    return leader.usable(follower.tokens, follower.tol) >= done


def common(one: Seq[int], other: Seq[int]) -> int:
    """How many first tokens are the same."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
