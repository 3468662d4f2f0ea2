"""Where the rows of a call lie in the work area, and attention over it without a copy.

Letters: n rows of the call, S sequences, W rows of a sequence, H ``n_head``, d ``d_head``, T
entries of a ring that are in use.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.inference import InferenceFunction
from server.engine.layout import Layout
from server.engine.slab import Slab

_PADDING = 1.5
"""As many products may be made for nothing, to make all sequences' attention at once."""


@dataclass(frozen=True, slots=True)
class _Together:
    """The same number of rows of neighbouring sequences.

    Attributes:
        begin: first row of the work area.
        end: behind the last one.
        grid: ``(end − begin, W)`` rows of the call, n for none; None where they are all of them.
        rows: of the call, those in the grid; None for all.
        cells: where they are in the flattened grid; None for all.
    """

    begin: int
    end: int
    grid: Tensor | None
    rows: Tensor | None
    cells: Tensor | None


@dataclass(frozen=True, slots=True)
class _Alone:
    """Neighbouring rows of one sequence, ``begin`` to ``end − 1`` of the call."""

    row: int
    begin: int
    end: int


class Packing:
    """The rows of one call on the device.

    Attributes:
        rows: of the solver, ``(n,)`` int64.
        work_rows: ``(n,)`` int64, of the work area.
        entries: ``(n,)`` int64, of its rings.
    """

    def __init__(self, layout: Layout, slab: Slab, hidden: int) -> None:
        """Takes the rows of a call.

        Args:
            layout: of the rows.
            slab: with the work area.
            hidden: what stands for the distance of a key that is not seen.
        """
        config, device = slab.config, slab.key.device
        self._slab, self._layout = slab, layout
        self.rows = torch.tensor(layout.row_ids, device=device)
        self.work_rows = torch.tensor(layout.work, device=device)
        at = torch.tensor(layout.positions, device=device)
        self.entries = at % slab.ring
        self._used = min(slab.ring, max(layout.positions) + 1)
        # A key is seen from its own position on, and as long as it is within the query's context:
        # all tokens from mem_len before the start of its segment on.
        reach = (at % config.tgt_len + config.mem_len).clamp(max=config.attention_span - 1)
        reach = torch.minimum(reach, at)
        distance = (at[:, None] - torch.arange(self._used, device=device)) % slab.ring
        self._distance = torch.where(distance <= reach[:, None], distance, hidden)
        self._together, self._alone = self._group(layout.counts, device)

    def _group(
        self, counts: list[int], device: torch.device
    ) -> tuple[_Together | None, list[_Alone]]:
        """Which rows are computed together: all sequences' first ones, if they lie close."""
        sequences, offsets = self._layout.sequences, self._layout.offsets
        begin, end = sequences[0].slot, sequences[-1].slot + 1
        n, span = sum(counts), end - begin
        width = max(counts) if span * max(counts) <= _PADDING * n else min(counts)
        if len(counts) == 1 or span * width > 2 * sum(min(width, count) for count in counts):
            width = 0
        alone = [
            _Alone(sequence.slot, offset + min(width, count), offset + count)
            for sequence, offset, count in zip(sequences, offsets, counts, strict=True)
            if count > width
        ]
        if width == 0:
            return None, alone
        if len(counts) == span and set(counts) == {width}:
            return _Together(begin, end, None, None, None), alone
        grid = [[n] * width for _ in range(span)]
        for sequence, offset, count in zip(sequences, offsets, counts, strict=True):
            here = min(width, count)
            grid[sequence.slot - begin][:here] = range(offset, offset + here)
        flat = [row for line in grid for row in line]
        cells = [i for i, row in enumerate(flat) if row < n]
        index = torch.tensor(grid, device=device)
        rows = torch.tensor([flat[i] for i in cells], device=device)
        return _Together(begin, end, index, rows, torch.tensor(cells, device=device)), alone

    def attend(self, f: InferenceFunction, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values by the softmax of the scores: ``(n, H, d)`` each to ``(n, D)``.

        The rows' own keys and values are in the work area afterwards.
        """
        self._slab.write_keys(self.work_rows, self.entries, key, value)
        n, n_head, d_head = query.shape
        by_distance = f.by_distance(query)
        index = self._distance.expand(n_head, n, self._used)
        scores = by_distance.gather(2, index)
        if self._together is not None and not self._alone and self._together.grid is None:
            return self._all_together(self._together, query, scores)
        mixed = query.new_empty(n, n_head * d_head)
        if self._together is not None:
            mixed[self._together.rows] = self._some_together(self._together, query, scores)
        for group in self._alone:
            mixed[group.begin : group.end] = self._one_alone(group, query, scores)
        return mixed

    def _all_together(self, group: _Together, query: Tensor, scores: Tensor) -> Tensor:
        """Queries of S sequences with W rows each, in their order."""
        n, n_head, d_head = query.shape
        span = group.end - group.begin
        q = query.view(span, -1, n_head, d_head).transpose(1, 2)
        lifted = scores.view(n_head, span, -1, self._used).transpose(0, 1)
        key = self._slab.key[group.begin : group.end, :, : self._used]
        value = self._slab.value[group.begin : group.end, :, : self._used]
        weight = (q @ key.transpose(2, 3)).add_(lifted).softmax(-1)
        return (weight @ value).transpose(1, 2).reshape(n, n_head * d_head)

    def _some_together(self, group: _Together, query: Tensor, scores: Tensor) -> Tensor:
        """The same with places that are empty, or rows that are not among them."""
        assert group.grid is not None
        flat = group.grid.flatten()
        # An empty place has the query 0 and some row's scores; nobody reads what comes of it.
        padded = torch.cat([query, torch.zeros_like(query[:1])])[flat]
        scores = scores[:, flat.clamp(max=len(query) - 1)]
        return self._all_together(group, padded, scores)[group.cells]

    def _one_alone(self, group: _Alone, query: Tensor, scores: Tensor) -> Tensor:
        q = query[group.begin : group.end].transpose(0, 1)
        key = self._slab.key[group.row, :, : self._used]
        value = self._slab.value[group.row, :, : self._used]
        lifted = scores[:, group.begin : group.end]
        weight = torch.baddbmm(lifted, q, key.transpose(1, 2)).softmax(-1)
        return (weight @ value).transpose(0, 1).flatten(1)
