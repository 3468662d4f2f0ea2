"""Which places the rows of a call take where shapes must be few and fixed. No torch.

On a GPU a call is the replay of a graph, and a graph has one shape: G groups of W places each. The
rows in a group are of one sequence, whose keys and values are read once for all of them.
"""

from dataclasses import dataclass

from server.engine.layout import Layout

WIDTHS = (1, 8, 64)
"""Places of a group: for streams, for narrow windows and for wide ones, which take several."""

STEP = 64
"""Rows of a call come in powers of two up to this, and in multiples of it beyond: a product with so
few rows takes the time of reading the weights, however few they are."""

_READ = 4
_COPY = 12
"""What a group's attention costs, in rows of the feed-forward, where its ring is read in place and
where it is copied first: estimated by bytes over bandwidth and products over their rate on an H200,
for the published shape in float32."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a call.

    Attributes:
        groups: G.
        width: W.
        dense: whether group g is of row g of the work area, so that no ring has to be copied.
    """

    groups: int
    width: int
    dense: bool

    @property
    def rows(self) -> int:
        """Places of the call."""
        return self.groups * self.width

    def cost(self, *, in_place: bool) -> int:
        """About what a call costs, in rows of the feed-forward; see ``arrange``."""
        reads = self.dense or (in_place and self.width == 1)
        return max(STEP, self.rows) + self.groups * (_READ if reads else _COPY)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where the rows of a layout are.

    Attributes:
        shape: of the call.
        work: for each group, its row of the work area; the spare one where there is none.
        places: of the layout's rows.
    """

    shape: Shape
    work: list[int]
    places: list[int]


def padded(count: int, step: int = STEP) -> int:
    """The least size that holds ``count``: a power of two, or a multiple of ``step``."""
    return 1 << (count - 1).bit_length() if count <= step else -(-count // step) * step


def most_places(max_rows: int) -> int:
    """Bound on the places of a call of ``max_rows`` rows at most."""
    return 2 * padded(max_rows)


def arrange(
    layout: Layout, *, work_rows: int, max_rows: int, in_place: bool = False
) -> Arrangement:
    """Chooses the cheapest shape, and gives every row its place.

    Args:
        layout: with at least one row.
        work_rows: of the work area, the spare one at their end included.
        max_rows: of any call.
        in_place: whether groups of one place read their rings in place wherever those are.
    """
    counts = layout.counts
    shapes = [_shape(counts, width) for width in WIDTHS]
    if max(counts) == 1 and not in_place:
        groups = min(padded(layout.work[-1] + 1), work_rows)
        shapes.append(Shape(groups, 1, dense=True))
    fitting = [shape for shape in shapes if shape.rows <= most_places(max_rows)]
    shape = min(fitting, key=lambda shape: shape.cost(in_place=in_place))
    if shape.dense:
        return Arrangement(shape, list(range(shape.groups)), layout.work)
    work: list[int] = []
    places: list[int] = []
    for sequence, count in zip(layout.sequences, counts, strict=True):
        first = len(work) * shape.width
        places += range(first, first + count)
        work += [sequence.slot] * -(-count // shape.width)
    work += [work_rows - 1] * (shape.groups - len(work))
    return Arrangement(shape, work, places)


def stream_shapes(running: int, *, in_place: bool = False) -> list[Shape]:
    """Those of one row of each of up to ``running`` sequences, neighbours unless ``in_place``."""
    counts = sorted({padded(n) for n in range(1, running + 1)})
    if in_place:
        return [Shape(count, 1, dense=False) for count in counts]
    return [Shape(min(count, running + 1), 1, dense=True) for count in counts]


def _shape(counts: list[int], width: int) -> Shape:
    groups = sum(-(-count // width) for count in counts)
    return Shape(padded(groups, max(1, STEP // width)), width, dense=False)
