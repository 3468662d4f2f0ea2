"""Memory of all sessions: a ring of the last tokens' fixed points, keys and values per slot."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.config import ModelConfig
from server.engine.types import Solved

EMPTY = -1
"""Position of a ring entry that holds no token."""


@dataclass(frozen=True, slots=True)
class History:
    """Memory of R slots, as attention wants it.

    Attributes:
        key: ``(R, K, n_head, d_head)``.
        value: the same.
        position: ``(R, K)`` int64, of each entry; ``EMPTY`` where there is none.
    """

    key: Tensor
    value: Tensor
    position: Tensor


class Slab:
    """A fixed number of slots of ``klen = mem_len + tgt_len`` tokens each.

    Position p lives at entry ``p % klen``: by the rule of contexts (from ``mem_len`` before the
    start of its segment) no token needs what a later one has overwritten. What a slot holds beyond
    the ring, on the host: how many tokens it has seen, and how the last one was solved.
    """

    def __init__(
        self, config: ModelConfig, *, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Makes empty slots; ``dtype`` is that of states."""
        heads = (slots, config.klen, config.n_head, config.d_head)
        self._key = torch.zeros(heads, device=device, dtype=dtype)
        self._value = torch.zeros(heads, device=device, dtype=dtype)
        self._z = torch.zeros(slots, config.klen, config.d_model, device=device, dtype=dtype)
        self._position = torch.full((slots, config.klen), EMPTY, device=device)
        self._klen = config.klen
        self._length = [0] * slots
        self._solved: list[Solved | None] = [None] * slots

    @property
    def bytes_per_slot(self) -> int:
        """Device bytes of one slot."""
        tensors = (self._key, self._value, self._z, self._position)
        return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)

    def length(self, slot: int) -> int:
        """Tokens that the slot has seen, the priming <eos> included."""
        return self._length[slot]

    def last(self, slot: int) -> tuple[Tensor, Solved]:
        """Fixed point ``(d_model,)`` of the last token, and how it was solved."""
        solved = self._solved[slot]
        assert solved is not None, "the slot is empty"
        return self._z[slot, (self._length[slot] - 1) % self._klen], solved

    def last_states(self, slots: list[int]) -> Tensor:
        """Fixed points ``(n, d_model)`` of the last tokens of slots that are not empty."""
        entries = [(self._length[slot] - 1) % self._klen for slot in slots]
        return self._z[slots, entries]

    def reset(self, slot: int) -> None:
        """Forgets everything."""
        self._position[slot] = EMPTY
        # Attention gives hidden entries the weight 0, and 0 · inf would be no number.
        self._value[slot] = 0.0
        self._length[slot], self._solved[slot] = 0, None

    def copy(self, source: int, target: int) -> None:
        """Makes ``target`` equal to ``source``."""
        for tensor in (self._key, self._value, self._z, self._position):
            tensor[target] = tensor[source]
        self._length[target] = self._length[source]
        self._solved[target] = self._solved[source]

    def write(
        self, slots: Tensor, positions: Tensor, *, key: Tensor, value: Tensor, z: Tensor
    ) -> None:
        """Stores n accepted tokens.

        Args:
            slots: ``(n,)`` int64.
            positions: ``(n,)`` int64.
            key: ``(n, n_head, d_head)``.
            value: the same.
            z: ``(n, d_model)``.
        """
        entries = positions % self._klen
        self._key[slots, entries] = key
        self._value[slots, entries] = value
        self._z[slots, entries] = z
        self._position[slots, entries] = positions

    def advance(self, slot: int, length: int, solved: Solved) -> None:
        """The slot has now seen ``length`` tokens, the last of them solved so."""
        self._length[slot], self._solved[slot] = length, solved

    def history(self, slots: list[int]) -> History:
        """Memory of some slots, cut to the entries that any of them uses."""
        used = min(self._klen, max(self._length[slot] for slot in slots))
        index = torch.tensor(slots, device=self._position.device)
        return History(
            self._key[index, :used], self._value[index, :used], self._position[index, :used]
        )
