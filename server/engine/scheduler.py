"""Who gets which rows of the next call of f. Pure bookkeeping: no torch, no clock.

A sequence is one run of tokens in one slot of memory. Its tokens are solved from left to right in
a window: *entered* tokens have a row in every call until they are *accepted*, and they are
accepted in order.
"""

from collections import deque
from dataclasses import dataclass, field

STALL_CALLS = 16
"""A sequence with no token accepted in this many calls goes on with its first one alone."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A run of tokens being solved.

    Attributes:
        slot: of its memory.
        start: position of ``inputs[0]`` in the history.
        inputs: tokens to solve; a generation appends to it.
        accepted: how many of them are done.
        rows: solver rows of the tokens in the window, ``inputs[accepted : accepted + len(rows)]``.
        stalled_calls: calls of f since a token of it was last accepted.
    """

    slot: int
    start: int
    inputs: list[int]
    accepted: int = 0
    rows: deque[int] = field(default_factory=deque)
    stalled_calls: int = 0

    @property
    def active(self) -> list[int]:
        """Rows that take part in the next call.

        While the first token stalls, calls on later ones are wasted: they would only spend their
        budget on a history that is still wrong. So they rest, and keep what they have learned.
        """
        rows = list(self.rows)
        return rows[:1] if self.stalled_calls >= STALL_CALLS else rows

    @property
    def entered(self) -> int:
        """Tokens that are done or in the window."""
        return self.accepted + len(self.rows)

    @property
    def waiting(self) -> int:
        """Tokens that have no row yet."""
        return len(self.inputs) - self.entered

    @property
    def done(self) -> bool:
        """Whether every input is accepted."""
        return self.accepted == len(self.inputs)


@dataclass(frozen=True, slots=True)
class Entry:
    """A token that enters the window of its sequence, in ``row``."""

    sequence: Sequence
    index: int
    row: int


class Scheduler:
    """Shares the rows of a call of f among the running sequences.

    Every running sequence with a token to solve has a row in every call. What is left is given out
    in turn, one row at a time, until windows or the call are full. One row is kept for each
    sequence that may yet join, so that a new request is part of the next call.
    """

    def __init__(self, *, max_batch_tokens: int, max_running: int, window: int) -> None:
        """Takes the sizes of a call of f.

        Raises:
            ValueError: the running sequences could not have a row each.
        """
        if not 1 <= max_running <= max_batch_tokens:
            raise ValueError(
                f"max_running must be in [1, max_batch_tokens = {max_batch_tokens}], "
                f"got {max_running}"
            )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._max_running = max_running
        self._window = window
        self._free_rows = list(range(max_batch_tokens - 1, -1, -1))
        self._running: deque[Sequence] = deque()

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The running sequences."""
        return tuple(self._running)

    @property
    def has_room(self) -> bool:
        """Whether one more sequence may run."""
        return len(self._running) < self._max_running

    @property
    def most_candidates(self) -> int:
        """How many candidates may run: with a quarter of the room others need not wait for them."""
        return self._max_running - self._max_running // 4

    @property
    def active_rows(self) -> int:
        """Rows of the next call, before new ones enter."""
        return sum(len(sequence.active) for sequence in self._running)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence run; there must be room."""
        assert self.has_room, "no room for one more sequence"
        self._running.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out and frees its rows."""
        self._running.remove(sequence)
        self._free_rows.extend(sequence.rows)
        sequence.rows.clear()

    def enter(self) -> list[Entry]:
        """Gives out rows for the next call; the entries are in the order of their tokens."""
        entries = [
            self._enter(sequence)
            for sequence in self._running
            if not sequence.rows and sequence.waiting
        ]
        spare = len(self._free_rows) - (self._max_running - len(self._running))
        spare -= sum(1 for s in self._running if not s.rows)
        while spare > 0:
            turn = [s for s in self._running if s.waiting and len(s.rows) < self._window]
            if not turn:
                break
            for sequence in turn[:spare]:
                entries.append(self._enter(sequence))
            spare -= len(turn[:spare])
        # Who is first in line for spare rows changes from call to call.
        self._running.rotate(-1)
        return entries

    def _enter(self, sequence: Sequence) -> Entry:
        row = self._free_rows.pop()
        entry = Entry(sequence, sequence.entered, row)
        sequence.rows.append(row)
        return entry

    def accept(self, sequence: Sequence, count: int) -> None:
        """After a call of f: the first ``count`` tokens of the window are done and leave it."""
        assert count <= len(sequence.rows), "more tokens accepted than are in the window"
        for _ in range(count):
            self._free_rows.append(sequence.rows.popleft())
        sequence.accepted += count
        sequence.stalled_calls = 0 if count else sequence.stalled_calls + 1
