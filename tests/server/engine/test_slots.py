"""The pool of slots against a list of counts."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.engine.slots import SlotPool


class Slots(RuleBasedStateMachine):
    """Whoever takes, shares and gives back: counts stay right, and the least free slot goes."""

    @initialize(total=st.integers(0, 6))
    def begin(self, total: int) -> None:
        self.pool, self.holders = SlotPool(total), [0] * total

    @rule()
    def acquire(self) -> None:
        free = [slot for slot, count in enumerate(self.holders) if not count]
        slot = self.pool.acquire()
        assert slot == (free[0] if free else None)
        if slot is not None:
            self.holders[slot] = 1

    @rule(data=st.data(), more=st.sampled_from((1, -1)))
    def retain_or_release(self, data: st.DataObject, more: int) -> None:
        if not self.holders:
            return
        slot = data.draw(st.integers(0, len(self.holders) - 1))
        change = self.pool.retain if more > 0 else self.pool.release
        if self.holders[slot]:
            change(slot)
            self.holders[slot] += more
        else:
            with pytest.raises(AssertionError, match=f"slot {slot} is free"):
                change(slot)

    @invariant()
    def adds_up(self) -> None:
        assert self.pool._holders == self.holders
        assert self.pool.used == sum(count > 0 for count in self.holders)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
