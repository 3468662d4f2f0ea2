"""When a job's tokens were solved, in so few pieces that it can be told: plain data, no clock."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from server.engine.solve import SolveStats

MOST_PIECES = 32
"""Of a prompt, and of what is drawn after it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that were accepted one after another.

    Attributes:
        begun: instant at which those before were accepted.
        ended: instant at which the last of them was.
        stats: what solving them took; ``nfe_total`` counts the calls of f in between.
    """

    begun: float
    ended: float
    stats: SolveStats

    def and_then(self, later: "Piece") -> "Piece":
        """This piece and the one behind it, as one."""
        return Piece(self.begun, later.ended, self.stats + later.stats)


class Pieces:
    """A bounded number of pieces: where there are more, each is of twice as many calls of f."""

    def __init__(self, most: int = MOST_PIECES) -> None:
        """Begin without any; ``most`` is even."""
        self._most, self._calls = most, 1
        # Replaced and never changed, as another thread may read it.
        self._pieces: tuple[Piece, ...] = ()

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, piece: Piece) -> None:
        """Add the tokens accepted last; those without a call of f in between belong together."""
        pieces = self._pieces
        is_full = bool(pieces) and pieces[-1].stats.nfe_total >= self._calls
        if pieces and (piece.stats.nfe_total == 0 or not is_full):
            self._pieces = (*pieces[:-1], pieces[-1].and_then(piece))
            return
        if len(pieces) == self._most:
            pairs = zip(pieces[::2], pieces[1::2], strict=True)
            pieces = tuple([one.and_then(other) for one, other in pairs])
            self._calls *= 2
        self._pieces = (*pieces, piece)


@dataclass(slots=True)
class Timeline:
    """Instants of one job, written on the engine's thread and read on any.

    Attributes:
        submitted: when it was accepted; None while it is not.
        started: when it left the queue.
        prompt_solved: when the prompt of a generation was solved.
        ended: when it was answered.
        stats: what it took in all, once it is answered.
        prefill: pieces of what was given.
        decode: pieces of what was drawn.
    """

    submitted: float | None = None
    started: float | None = None
    prompt_solved: float | None = None
    ended: float | None = None
    stats: SolveStats | None = None
    prefill: Pieces = field(default_factory=Pieces)
    decode: Pieces = field(default_factory=Pieces)
    _calls: int = 0
    _last: float = 0.0

    def start(self, now: float) -> None:
        """The job is worked on."""
        self.started = self._last = now

    def solve_prompt(self, now: float) -> None:
        """Everything that was given is solved; what comes now is drawn."""
        self.prompt_solved = self._last = now

    def accept(self, now: float, token: SolveStats, *, calls: int) -> None:
        """A token is accepted, after so many calls of f for the whole job."""
        piece = Piece(self._last, now, replace(token, nfe_total=calls - self._calls))
        self._calls, self._last = calls, now
        (self.prefill if self.prompt_solved is None else self.decode).add(piece)

    def end(self, now: float, stats: SolveStats) -> None:
        """The job is answered, be it with an error."""
        self.ended, self.stats = now, stats
