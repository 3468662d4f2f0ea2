"""Memory on the device: a work area for sequences that are being solved, and a store behind it.

A sequence works in a *row* of the work area, laid out as attention wants it; what a session keeps
lies in a *slot* of the store. A row is loaded from a slot when a sequence starts, and saved to
another one when its session takes the result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.config import ModelConfig
from server.engine.solve import Solved
from server.engine.transfer import sent


@dataclass(slots=True)
class _Seen:
    """How many tokens a memory has seen, and how the last one was solved."""

    length: int = 0
    solved: Solved | None = None


def slot_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Device bytes of what one session keeps: key, value and state of a context."""
    heads = config.n_head * config.d_head
    return config.klen * (2 * heads + config.d_model) * dtype.itemsize


class Slab:
    """Rows and slots, their keys, values and fixed points.

    The token at position p lies at entry ``p % ring`` of a row. A ring is as long as a context
    (``klen = mem_len + tgt_len``) and a window, so that no token of a window takes the place of one
    that another token of it still needs. A slot has room for a context alone.

    Attributes:
        spare: a row behind the others that belongs to no sequence, for the empty places of calls.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rows: int,
        slots: int,
        window: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Makes empty rows and slots.

        Args:
            config: of the model.
            rows: sequences that may be solved at once.
            slots: memories that may be kept.
            window: most tokens of a sequence that are solved at once.
            device: where.
            dtype: of states.
        """
        self.config = config
        self.klen, self.ring, self.spare = config.klen, config.klen + window, rows
        heads = (config.n_head, config.d_head)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        n_head, d_head = heads
        self.key = zeros(rows + 1, n_head, self.ring, d_head)
        self.value = zeros(rows + 1, n_head, self.ring, d_head)
        self._z = zeros(rows + 1, self.ring, config.d_model)
        self._kept_key = zeros(slots, n_head, self.klen, d_head)
        self._kept_value = zeros(slots, n_head, self.klen, d_head)
        self._kept_z = zeros(slots, self.klen, config.d_model)
        self._row_seen = [_Seen() for _ in range(rows)]
        self._slot_seen = [_Seen() for _ in range(slots)]

    @property
    def bytes_per_slot(self) -> int:
        """Device bytes of one slot."""
        return slot_bytes(self.config, self.key.dtype)

    @property
    def nbytes(self) -> int:
        """Device bytes of all rows and slots."""
        work = (self.key, self.value, self._z)
        return sum(tensor.nbytes for tensor in work) + len(self._slot_seen) * self.bytes_per_slot

    def length(self, row: int) -> int:
        """Tokens that the row has seen, the priming <eos> included."""
        return self._row_seen[row].length

    def last(self, row: int) -> tuple[Tensor, Solved]:
        """Fixed point ``(d_model,)`` of the row's last token, and how it was solved."""
        seen = self._row_seen[row]
        assert seen.solved is not None, "the row is empty"
        return self._z[row, (seen.length - 1) % self.ring], seen.solved

    def last_states(self, rows: list[int]) -> Tensor:
        """Fixed points ``(n, d_model)`` of the last tokens of rows that are not empty."""
        entries = [(self._row_seen[row].length - 1) % self.ring for row in rows]
        at, in_ring = sent([*rows, *entries], self._z.device).view(2, -1)
        return self._z[at, in_ring]

    def states(self, row: int) -> Tensor:
        """Fixed points ``(n, d_model)`` of the tokens that a row would keep, oldest first."""
        _, entries = self._contexts(self._row_seen[row].length)
        return self._z[row, entries]

    def kept_states(self, slot: int) -> tuple[Tensor, Solved]:
        """The same of a slot, and how the last one was solved."""
        seen = self._slot_seen[slot]
        assert seen.solved is not None, "the slot is empty"
        kept, _ = self._contexts(seen.length)
        return self._kept_z[slot, kept], seen.solved

    def is_finite(self, slot: int) -> bool:
        """Whether all that is kept in a slot are numbers; asks the device once."""
        kept, _ = self._contexts(self._slot_seen[slot].length)
        parts = (self._kept_key[slot, :, kept], self._kept_value[slot, :, kept])
        sums = [part.sum() for part in (*parts, self._kept_z[slot, kept])]
        return bool(torch.stack(sums).isfinite().all())

    def solved(self, row: int) -> Solved:
        """How the last token of a row was solved."""
        solved = self._row_seen[row].solved
        assert solved is not None, "the row is empty"
        return solved

    def reset(self, row: int) -> None:
        """Empties a row.

        Hidden entries have the weight 0, and 0 · inf would be no number: so they are cleared.
        """
        self.key[row].zero_()
        self.value[row].zero_()
        self._row_seen[row] = _Seen()

    def load(self, slot: int, row: int) -> None:
        """Makes a row continue what is kept in a slot."""
        seen = self._slot_seen[slot]
        kept, entries = self._contexts(seen.length)
        self.reset(row)
        self.key[row, :, entries] = self._kept_key[slot, :, kept]
        self.value[row, :, entries] = self._kept_value[slot, :, kept]
        self._z[row, entries] = self._kept_z[slot, kept]
        self._row_seen[row] = _Seen(seen.length, seen.solved)

    def save(self, row: int, slot: int) -> None:
        """Keeps in a slot what a row has come to."""
        seen = self._row_seen[row]
        kept, entries = self._contexts(seen.length)
        self._kept_key[slot, :, kept] = self.key[row, :, entries]
        self._kept_value[slot, :, kept] = self.value[row, :, entries]
        self._kept_z[slot, kept] = self._z[row, entries]
        self._slot_seen[slot] = _Seen(seen.length, seen.solved)

    def _contexts(self, length: int) -> tuple[Tensor, Tensor]:
        """Entries of a slot, and those of a row, of the last tokens of ``length``."""
        first = max(0, length - self.klen)
        positions = torch.arange(first, length, device=self.key.device)
        return positions % self.klen, positions % self.ring

    def write_keys(self, rows: Tensor, entries: Tensor, key: Tensor, value: Tensor) -> None:
        """Stores keys and values of n tokens, accepted or not.

        Args:
            rows: ``(n,)`` int64.
            entries: ``(n,)`` int64 of the rings.
            key: ``(n, n_head, d_head)``.
            value: the same.
        """
        self.key.transpose(1, 2)[rows, entries] = key
        self.value.transpose(1, 2)[rows, entries] = value

    def write_states(self, rows: Tensor, entries: Tensor, z: Tensor) -> None:
        """Stores fixed points ``(n, d_model)`` of accepted tokens."""
        self._z[rows, entries] = z

    def advance(self, row: int, length: int, solved: Solved) -> None:
        """The row has now seen ``length`` tokens, the last of them solved so."""
        self._row_seen[row] = _Seen(length, solved)
