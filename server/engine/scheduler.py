"""Who gets which rows of the next call of f. Pure bookkeeping: no torch, no clock.

A sequence is one run of tokens in one slot of memory. Its tokens are solved from left to right in
a window: a token that has *entered* holds a row of the solver until it is *accepted*, and tokens
are accepted in order. In each call a first part of the window is *active*; the rest rests.
"""

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice

from server.engine.costs import CostCurve
from server.engine.fair import PRIORITY_WEIGHTS, Group, Sharer

STALL_CALLS = 16
"""A sequence with no token accepted in this many calls goes on with its first one alone."""

GATE = 0.3
"""Relative residual of a token, from which on a call on the token behind it is worth its time.

With a window of 8 on two trained checkpoints the calls of f per token, all rows counted, were 4.5
and 13.4 where every row took part, 3.5 and 10.2 behind this gate, 3.0 and 8.2 behind one of 0.1,
2.8 and 7.9 one token at a time; the window then moved on by a token in 1.6 and 4.7 calls, in 2.0
and 7.9, in 2.8 and 7.9.
"""

LOOKAHEAD = 16
"""Rows of a window at most that are called behind one that is far, where the call has room.

A token that is called often while those before it move learns what is no longer true: of 64 such
rows one in a hundred or so spent its whole budget, of 16 none did.
"""

STREAM_SLOWDOWN = 1.4
"""How much longer a call may take than with the rows of streams alone.

What the user sees is to be at most twice: the rest is for what a call does beside f.
"""


@dataclass(slots=True, eq=False)
class Sequence:
    """A run of tokens being solved.

    Attributes:
        slot: of its memory.
        start: position of ``inputs[0]`` in the history.
        inputs: tokens to solve; a generation appends to it.
        owner: whose it is.
        request: which of the owner's requests it belongs to.
        priority: of the request, an index of ``PRIORITY_WEIGHTS``.
        draws: whether its last token is waited for, to draw the next one.
        guessed: how many of the last inputs are guesses of what will be drawn: they are solved,
            but not accepted.
        accepted: how many of the tokens are done.
        rows: solver rows of the tokens in the window, ``inputs[accepted : accepted + len(rows)]``.
        granted: how many of the rows take part in the next call.
        ready: how many rows are worth a call: the first, and each behind one that is near its
            fixed point; it may be one more than there are.
        begun: whether it had a row in a call.
        stalled_calls: calls of f with rows of it since a token of it was last accepted.
    """

    slot: int
    start: int
    inputs: list[int]
    owner: str = ""
    request: Hashable = ""
    priority: int = 1
    draws: bool = False
    guessed: int = 0
    accepted: int = 0
    rows: deque[int] = field(default_factory=deque)
    granted: int = 0
    ready: int = 1
    begun: bool = False
    stalled_calls: int = 0

    @property
    def active(self) -> list[int]:
        """Rows that take part in the next call: the first ones of the window."""
        return list(islice(self.rows, self.granted))

    @property
    def entered(self) -> int:
        """Tokens that are done or in the window."""
        return self.accepted + len(self.rows)

    @property
    def waiting(self) -> int:
        """Tokens that have no row yet."""
        return len(self.inputs) - self.entered

    @property
    def left(self) -> int:
        """Tokens that are not done."""
        return len(self.inputs) - self.accepted

    @property
    def done(self) -> bool:
        """Whether every input is accepted."""
        return not self.left

    @property
    def interactive(self) -> bool:
        """Whether somebody waits for its next token: it has one that is known."""
        return self.draws and self.left == 1 + self.guessed


@dataclass(frozen=True, slots=True)
class Entry:
    """A token that enters the window of its sequence, in ``row``."""

    sequence: Sequence
    index: int
    row: int


class Scheduler:
    """Shares the rows of a call of f among the running sequences.

    Spoken for are one row of every sequence that is ``interactive``, and one of every sequence
    that is new: it takes part in the first call after it came. The other rows go, one at a time,
    to the owner that has had least, there to its request that has had least, there to the sequence
    that has, all by the weights of their priorities (``fair.py``). So windows are wide when a
    request is alone and narrow when others fill the call.

    A call has at least one row that is not spoken for, if anybody wants it, so nobody waits for
    ever: at most for as many calls as the product, over owners, requests and sequences, of
    ``n · (2 + w)``, for n of them and w the largest weight over the own.

    A row that rests stays with its token. Each sequence that may yet join is kept a row.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_running: int,
        window: int,
        max_rows: int | None = None,
        costs: CostCurve | None = None,
    ) -> None:
        """Takes the sizes of a call of f.

        Args:
            max_batch_tokens: most rows of a call.
            max_running: most sequences.
            window: most rows of a sequence.
            max_rows: rows that the solver has, resting ones included; None for
                ``max_batch_tokens``.
            costs: see ``costs``.

        Raises:
            ValueError: the running sequences could not have a row each, or there are fewer rows
                than a call may have.
        """
        if not 1 <= max_running <= max_batch_tokens:
            raise ValueError(
                f"max_running must be in [1, max_batch_tokens = {max_batch_tokens}], "
                f"got {max_running}"
            )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if max_rows is None:
            max_rows = max_batch_tokens
        if max_rows < max_batch_tokens:
            raise ValueError(
                f"max_rows must be at least max_batch_tokens = {max_batch_tokens}, got {max_rows}"
            )
        self._most, self._max_running, self._window = max_batch_tokens, max_running, window
        self._max_rows = max_rows
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._running: dict[Sequence, Sharer] = {}
        self._owned: Counter[str] = Counter()
        self._owners = Group()
        self.costs = costs

    @property
    def costs(self) -> CostCurve | None:
        """What a call costs. None, until it is known: calls are filled and may take any time."""
        return self._costs

    @costs.setter
    def costs(self, costs: CostCurve | None) -> None:
        self._costs = costs
        self._best_rows = self._most if costs is None else min(self._most, costs.best_rows())

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The running sequences."""
        return tuple(self._running)

    @property
    def active(self) -> tuple[Sequence, ...]:
        """Those of them that have a row in the next call."""
        return tuple(sequence for sequence in self._running if sequence.granted)

    @property
    def active_rows(self) -> int:
        """Rows of the next call."""
        return sum(sequence.granted for sequence in self._running)

    @property
    def max_running(self) -> int:
        """Most sequences."""
        return self._max_running

    @property
    def has_room(self) -> bool:
        """Whether one more sequence may run."""
        return len(self._running) < self._max_running

    @property
    def running_of(self) -> Counter[str]:
        """How many sequences run, by owner."""
        return self._owned

    def problems(self) -> list[str]:
        """Where rows and places do not add up."""
        rows = [*self._free_rows, *(row for s in self._running for row in s.rows)]
        found = []
        if sorted(rows) != list(range(self._max_rows)):
            found.append(f"rows of the solver are {sorted(rows)}, of {self._max_rows}")
        owned = Counter(sequence.owner for sequence in self._running)
        if owned != self._owned:
            found.append(f"places are counted as {dict(self._owned)}, taken are {dict(owned)}")
        return found

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence run; there must be room."""
        assert self.has_room, "no room for one more sequence"
        weight = PRIORITY_WEIGHTS[sequence.priority]
        owner = self._owners.group(sequence.owner, weight)
        request = owner.group(sequence.request, weight)
        self._running[sequence] = request.join(sequence, weight)
        self._owned[sequence.owner] += 1

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out and frees its rows."""
        del self._running[sequence]
        self._owners.leave(sequence.owner, sequence.request, sequence)
        self._owned -= Counter([sequence.owner])
        self._free_rows.extend(sequence.rows)
        sequence.rows.clear()
        sequence.granted = 0

    def withdraw(self, sequence: Sequence) -> None:
        """Forgets what is guessed of a sequence, and frees the rows of it."""
        del sequence.inputs[len(sequence.inputs) - sequence.guessed :]
        sequence.guessed = 0
        while sequence.entered > len(sequence.inputs):
            self._free_rows.append(sequence.rows.pop())
        sequence.granted = min(sequence.granted, len(sequence.rows))

    def enter(self) -> list[Entry]:
        """Gives out the rows of the next call.

        Returns:
            The tokens that enter for it, those of a sequence in their order.
        """
        self._grant()
        wanting = [sequence for sequence in self._running if sequence.granted]
        # The first rows go first: they are kept for them, and others must not take them.
        entries = [self._enter(sequence) for sequence in wanting if not sequence.rows]
        spare = self._spare_rows()
        for sequence in wanting:
            sequence.begun = True
            missing = sequence.granted - len(sequence.rows)
            if missing > 0:
                entered = min(missing, spare)
                entries += [self._enter(sequence) for _ in range(entered)]
                spare -= entered
                sequence.granted = len(sequence.rows)
        return entries

    def _grant(self) -> None:
        """Decides how many rows of each sequence take part in the next call.

        First come the rows that are ready, as many as a call may have: those of streams before all
        others, guesses included. If they are so few that a call with more of them pays, the others
        of the windows follow.
        """
        spoken = waiting = 0
        streams = []
        for sequence in self._running:
            sequence.granted = 0
            if sequence.left:
                sequence.granted = int(sequence.interactive or not sequence.begun)
                spoken += sequence.granted
                waiting += not sequence.granted
                if sequence.interactive:
                    streams.append(sequence)
        guesses = self._grant_guesses(streams, self._most - spoken - min(1, waiting))
        spoken += guesses
        most = self._most_rows(spoken=spoken, waiting=waiting, streams=len(streams) + guesses)
        rows = spoken + self._share(most - spoken, ready=True)
        if rows < min(most, self._best_rows):
            self._share(min(most, self._best_rows) - rows, ready=False)

    def _grant_guesses(self, streams: list[Sequence], room: int) -> int:
        """Grants streams the rows of their guesses that are ready; how many those are."""
        granted = 0
        for sequence in streams:
            wanted = self._wanted(sequence, ready=True) - sequence.granted
            more = max(0, min(wanted, room - granted))
            sequence.granted += more
            granted += more
        return granted

    def _share(self, amount: int, *, ready: bool) -> int:
        """Grants up to ``amount`` rows more, of those that are ready or of all; how many."""
        wanted = 0
        for sequence, sharer in self._running.items():
            sharer.want = max(0, self._wanted(sequence, ready=ready) - sequence.granted)
            wanted += sharer.want
        if wanted > amount:
            self._owners.gather()
            self._owners.divide(amount)
        else:  # where everybody has all it wants nobody is owed anything
            for sharer in self._running.values():
                sharer.given = sharer.want
        for sequence, sharer in self._running.items():
            sequence.granted += sharer.given
        return min(wanted, amount)

    def _wanted(self, sequence: Sequence, *, ready: bool) -> int:
        """Rows that a sequence has a use for.

        While its first token stalls, calls on later ones are wasted: they would only spend their
        budget on a history that is still wrong. So they rest, and keep what they have learned.
        """
        if sequence.stalled_calls >= STALL_CALLS:
            return min(1, sequence.left)
        wanted = sequence.ready if ready else max(sequence.ready, LOOKAHEAD)
        return min(self._window, sequence.left, wanted)

    def _most_rows(self, *, spoken: int, waiting: int, streams: int) -> int:
        """How many rows the next call may have: no more than streams bear.

        Rows that are spoken for are there in any case, and one for those who wait.
        """
        rows = self._most
        if self._costs is not None and streams:
            rows = min(rows, self._costs.within(STREAM_SLOWDOWN * self._costs.seconds(streams)))
        return min(self._most, max(rows, spoken + min(1, waiting)))

    def _spare_rows(self) -> int:
        """Free rows beyond one for each sequence that has none, or may yet join."""
        without = sum(1 for sequence in self._running if not sequence.rows)
        return len(self._free_rows) - without - (self._max_running - len(self._running))

    def _enter(self, sequence: Sequence) -> Entry:
        row = self._free_rows.pop()
        entry = Entry(sequence, sequence.entered, row)
        sequence.rows.append(row)
        return entry

    def accept(self, sequence: Sequence, count: int, *, near: int = 0) -> None:
        """After a call of f: the first ``count`` tokens of the window are done and leave it.

        Args:
            sequence: that took part.
            count: of the tokens that are done.
            near: tokens behind them whose residuals are within the gate, up to the first that is
                not.
        """
        assert count <= sequence.granted, "more tokens accepted than were in the call"
        sequence.ready = 1 + near
        for _ in range(count):
            self._free_rows.append(sequence.rows.popleft())
        sequence.accepted += count
        sequence.granted -= count
        sequence.stalled_calls = 0 if count else sequence.stalled_calls + 1
