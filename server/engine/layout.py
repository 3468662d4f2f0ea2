"""Which rows a call of f has, and whose they are. No torch."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from server.engine.scheduler import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The rows of one call, those of a sequence together and in their order.

    Attributes:
        sequences: with at least one row each, in the order of their work rows.
        offsets: the first row of each sequence.
        row_ids: rows of the solver.
        work: for each row, that of the work area which its sequence has.
        positions: of the rows' tokens in their histories.
    """

    sequences: list[Sequence]
    offsets: list[int]
    row_ids: list[int]
    work: list[int]
    positions: list[int]

    @staticmethod
    def of(sequences: Seq[Sequence]) -> "Layout":
        """The active rows of sequences."""
        layout = Layout(sorted(sequences, key=lambda sequence: sequence.slot), [], [], [], [])
        for sequence in layout.sequences:
            active = sequence.active
            begin = sequence.start + sequence.accepted
            layout.offsets.append(len(layout.row_ids))
            layout.row_ids.extend(active)
            layout.work.extend([sequence.slot] * len(active))
            layout.positions.extend(range(begin, begin + len(active)))
        return layout

    @property
    def counts(self) -> list[int]:
        """Rows of each sequence."""
        ends = [*self.offsets[1:], len(self.row_ids)]
        return [end - begin for begin, end in zip(self.offsets, ends, strict=True)]


class Layouts:
    """Makes layouts: one stays the same object as long as nobody moves."""

    def __init__(self) -> None:
        self._layout = Layout([], [], [], [], [])
        self._moves: list[tuple[int, int, list[int]]] = []

    def of(self, active: Seq[Sequence]) -> Layout:
        """That of the sequences which have rows in a call."""
        sequences = sorted(active, key=lambda sequence: sequence.slot)
        moves = [(s.slot, s.start + s.accepted, s.active) for s in sequences]
        if moves != self._moves or sequences != self._layout.sequences:
            self._layout, self._moves = Layout.of(sequences), moves
        return self._layout
