"""Attention of a call's rows as one kernel of a CPU; ``packing.py`` does the same with torch.

Letters: n rows of the call, H ``n_head``, d ``d_head``, D ``d_model``.
"""

import torch
from torch import Tensor

from deq_model.inference import InferenceFunction
from deq_model.native.library import addresses, find, run, structure, suits
from server.engine.layout import Layout
from server.engine.slab import Slab

_Rings = structure(
    heads="int",
    d="int",
    ring="int",
    distances="int",
    key="address",
    value="address",
    positions="address",
    constant="address",
)


class Rings:
    """The work area, and what a distance adds to a score, as the kernel reads them."""

    def __init__(self, f: InferenceFunction, slab: Slab) -> None:
        """Takes the function and the memory of the sequences."""
        kernel = find("attend")
        assert kernel is not None, "there are no kernels"
        self._kernel = kernel
        self._table = f.distance_table()
        sizes = (slab.config.n_head, slab.config.d_head, slab.ring, self._table.constant.shape[1])
        tensors = (slab.key, slab.value, self._table.positions, self._table.constant)
        self._slab, self._rings = slab, _Rings(*sizes, *addresses(*tensors))

    def lay(self, layout: Layout) -> "RingPacking":
        """The rows of a call."""
        return RingPacking(self, layout, self._slab)

    def attend(self, places: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values by the softmax of the scores, ``(n, D)``.

        Args:
            places: ``(3, n)`` int64: work rows, entries, and how many keys each row sees.
            query: ``(n, H, d)``, each row dense, and rows as far apart as those of key and value.
            key: the same.
            value: the same.
        """
        mixed = query.new_empty(len(query), query.shape[1] * query.shape[2])
        channels = (query, key, value, query.stride(0))
        run(self._kernel, self._rings, len(query), *places, *channels, mixed)
        return mixed


class RingPacking:
    """The rows of one call: what ``Packing`` is, by a kernel.

    Attributes:
        rows: of the solver, ``(n,)`` int64.
        work_rows: ``(n,)`` int64, of the work area.
        entries: ``(n,)`` int64, of its rings.
    """

    def __init__(self, rings: Rings, layout: Layout, slab: Slab) -> None:
        """Takes the rows of a call."""
        config = slab.config
        # A key is seen from its own position on, and as long as it is within the query's context:
        # all tokens from mem_len before the start of its segment on.
        seen = [
            1 + min(at % config.tgt_len + config.mem_len, config.attention_span - 1, at)
            for at in layout.positions
        ]
        entries = [at % slab.ring for at in layout.positions]
        self._rings = rings
        self.rows, self._places = (
            torch.tensor(layout.row_ids),
            torch.tensor([layout.work, entries, seen]),
        )
        self.work_rows, self.entries = self._places[0], self._places[1]

    def attend(self, f: InferenceFunction, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values by the softmax of the scores: ``(n, H, d)`` each to ``(n, D)``.

        The rows' own keys and values are in the work area afterwards.
        """
        return self._rings.attend(self._places, query, key, value)


def can_run(slab: Slab) -> bool:
    """Whether there is a kernel for memory like this."""
    return suits(slab.key) and find("attend") is not None
