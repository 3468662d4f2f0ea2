"""Dividing what there is among those who want it: fair at every level, weighted, nobody left out.

Start-time fair queueing: one unit at a time goes to whoever has had least for its weight. No torch,
no clock, no threads.
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field

PRIORITY_WEIGHTS = (1.0, 4.0, 16.0)
"""By priority: low, normal, high. Where not all can be had, what each is given goes by them."""


@dataclass(slots=True, eq=False)
class Sharer:
    """One who shares.

    Attributes:
        weight: what it is given goes by it.
        want: units it could use now.
        given: units it was given at the last division.
        served: units that count as given so far, over its weight.
    """

    weight: float = 1.0
    want: int = 0
    given: int = 0
    served: float = 0.0

    def gather(self) -> None:
        """Brings ``want`` up to date."""

    def divide(self, amount: int) -> None:
        """Takes ``amount`` units."""
        self.given = amount


@dataclass(slots=True, eq=False)
class Group(Sharer):
    """Sharers that divide among them what the group is given; it weighs as its heaviest who wants.

    Who joins stands a unit behind the one that has waited longest: however many come and go, those
    who are there have their turns. Who had all it wanted is brought up to the others: nobody saves
    up for later what it had no use for. So a member gets its next unit before the others have had
    more than ``n · (2 + w)``, for n members and w the largest weight over its own.

    Attributes:
        members: by name.
        now: the least ``served`` of a member that wants more than it was given; never falls.
    """

    members: dict[Hashable, Sharer] = field(default_factory=dict)
    now: float = 0.0

    def group(self, name: Hashable, weight: float = 1.0) -> "Group":
        """The group of that name; if there is none a new one, of this weight to begin with."""
        found = self.members.get(name)
        if found is None:
            self.members[name] = found = Group(weight=weight, served=self.now + 1 / weight)
        assert isinstance(found, Group)
        return found

    def join(self, name: Hashable, weight: float) -> Sharer:
        """A new member that is no group."""
        assert name not in self.members
        self.members[name] = sharer = Sharer(weight=weight, served=self.now + 1 / weight)
        return sharer

    def leave(self, *path: Hashable) -> None:
        """Takes a member out, named from the outermost group on, and groups that it leaves empty.

        Whoever comes back gains nothing by it: it would join no earlier than it had its turn.
        """
        name, *below = path
        if below:
            self.group(name).leave(*below)
            if self.group(name).members:
                return
        del self.members[name]

    def gather(self) -> None:
        """Brings ``want`` and ``weight`` of it and of all groups below up to date."""
        want, heaviest = 0, 0.0
        for member in self.members.values():
            member.gather()
            if member.want:
                want += member.want
                heaviest = max(heaviest, member.weight)
        self.want = want
        if want:
            self.weight = heaviest

    def divide(self, amount: int) -> None:
        """Divides ``amount`` units, at most ``want``, among the members, and on below them."""
        self.given = amount
        everybody = list(self.members.values())
        if len(everybody) == 1:
            # Alone it owes nobody anything.
            everybody[0].divide(amount)
            return
        wanting = [member for member in everybody if member.want]
        for member in everybody:
            member.given = 0
        if amount >= self.want:
            for member in wanting:
                member.given = member.want
                member.served += member.want / member.weight
        else:
            _deal(wanting, amount)
        self._settle(everybody, wanting)
        for member in everybody:
            member.divide(member.given)

    def _settle(self, everybody: list[Sharer], wanting: list[Sharer]) -> None:
        """Moves the clock, and brings up to it who had all it wanted."""
        hungry = [member.served for member in wanting if member.given < member.want]
        if hungry:
            self.now = max(self.now, min(hungry))
        else:
            self.now = max([self.now, *(member.served for member in everybody)])
        for member in everybody:
            member.served = max(member.served, self.now)


def _deal(wanting: list[Sharer], amount: int) -> None:
    """One unit at a time to the member with the least ``served``, the newest of equals."""
    line = [(member.served, -age, member) for age, member in enumerate(wanting)]
    heapq.heapify(line)
    for _ in range(amount):
        _, place, member = line[0]
        member.given += 1
        member.served += 1 / member.weight
        if member.given < member.want:
            heapq.heapreplace(line, (member.served, place, member))
        else:
            heapq.heappop(line)
