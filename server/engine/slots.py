"""Which slots of session memory are in use, and by how many."""

import heapq
import threading
from collections import Counter


class SlotPool:
    """Counts the holders of each of a fixed number of slots. Thread-safe.

    A slot that more than one holder shares is read-only: sessions forked from one another hold
    the same slot until one of them is continued, which happens in a slot of its own.
    """

    def __init__(self, total: int) -> None:
        """Makes ``total`` free slots, numbered from 0."""
        self.total = total
        self._free = list(range(total))
        self._holders = [0] * total
        self._lock = threading.Lock()

    def acquire(self) -> int | None:
        """The free slot of least number, held once; None when there is none."""
        with self._lock:
            if not self._free:
                return None
            slot = heapq.heappop(self._free)
            self._holders[slot] = 1
            return slot

    def retain(self, slot: int) -> None:
        """One more holder of a slot that is in use."""
        with self._lock:
            assert self._holders[slot] > 0, f"slot {slot} is free"
            self._holders[slot] += 1

    def release(self, slot: int) -> None:
        """One holder less; the last one frees the slot."""
        with self._lock:
            assert self._holders[slot] > 0, f"slot {slot} is free"
            self._holders[slot] -= 1
            if self._holders[slot] == 0:
                heapq.heappush(self._free, slot)

    def problems(self, held: Counter[int], name: str) -> list[str]:
        """Where the pool is not as those who hold its slots say.

        Args:
            held: how many hold each slot.
            name: of the pool's slots, for what is told.
        """
        with self._lock:
            found = [
                f"{name} {slot} counts {count} holders, and {held[slot]} hold it"
                for slot, count in enumerate(self._holders)
                if count != held[slot]
            ]
            free = sorted(slot for slot, count in enumerate(self._holders) if count == 0)
            if sorted(self._free) != free:
                found.append(f"free {name}s are {free}, listed as free {sorted(self._free)}")
            return found

    @property
    def used(self) -> int:
        """Slots in use."""
        with self._lock:
            return self.total - len(self._free)
