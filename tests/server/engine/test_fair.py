"""Dividing: all of it, nobody beyond what it wants, by weight, and everybody in turn."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.fair import PRIORITY_WEIGHTS, Group, Sharer

WEIGHTS = st.sampled_from(PRIORITY_WEIGHTS)


def group_of(weights: list[float], want: int = 1000) -> tuple[Group, list[Sharer]]:
    group = Group()
    members = [group.join(name, weight) for name, weight in enumerate(weights)]
    for member in members:
        member.want = want
    return group, members


def divide(group: Group, amount: int) -> None:
    group.gather()
    group.divide(min(amount, group.want))


@given(
    wants=st.lists(st.tuples(WEIGHTS, st.integers(0, 9)), min_size=1, max_size=9),
    amounts=st.lists(st.integers(0, 40), max_size=9),
)
def test_all_of_it_and_nobody_beyond_what_it_wants(
    wants: list[tuple[float, int]], amounts: list[int]
) -> None:
    group, members = group_of([weight for weight, _ in wants])
    for member, (_, want) in zip(members, wants, strict=True):
        member.want = want
    for amount in amounts:
        divide(group, amount)
        assert sum(m.given for m in members) == min(amount, sum(want for _, want in wants))
        assert all(0 <= m.given <= m.want for m in members)


@given(
    weights=st.lists(WEIGHTS, min_size=2, max_size=8),
    amounts=st.lists(st.integers(1, 30), min_size=1, max_size=60),
)
def test_what_each_is_given_goes_by_its_weight_to_within_one_unit(
    weights: list[float], amounts: list[int]
) -> None:
    group, members = group_of(weights)
    # The first division brings those that joined behind to where the others are.
    divide(group, 100)
    given = [0] * len(members)
    for amount in amounts:
        divide(group, amount)
        given = [total + m.given for total, m in zip(given, members, strict=True)]
    for a, x in zip(given, weights, strict=True):
        for b, y in zip(given, weights, strict=True):
            assert abs(a / x - b / y) <= 2 * (1 / x + 1 / y)


def test_equals_take_turns() -> None:
    group, members = group_of([1.0, 1.0, 1.0])
    turns = []
    for _ in range(6):
        divide(group, 1)
        turns += [i for i, m in enumerate(members) if m.given]
    assert sorted(turns[:3]) == sorted(turns[3:]) == [0, 1, 2]


def test_groups_come_before_their_members() -> None:
    root = Group()
    for name in ("many", "one"):
        for i in range(9 if name == "many" else 1):
            root.group(name).join(i, 1.0).want = 100
    divide(root, 20)
    assert [root.group(name).given for name in ("many", "one")] == [10, 10]
    assert sorted(m.given for m in root.group("many").members.values()) == [1] * 8 + [2]


def test_a_group_weighs_as_its_heaviest_who_wants() -> None:
    root = Group()
    light, heavy = root.group("a").join(0, 1.0), root.group("a").join(1, 16.0)
    other = root.group("b").join(0, 1.0)
    light.want, heavy.want, other.want = 100, 100, 100
    divide(root, 34)
    assert (root.group("a").given, other.given) == (32, 2)
    assert heavy.given > 10 * light.given
    heavy.want = 0
    divide(root, 10)
    assert root.group("a").given in (4, 5, 6)


def test_nobody_saves_up_for_later_what_it_had_no_use_for() -> None:
    group, (modest, greedy) = group_of([1.0, 1.0])
    modest.want = 1
    for _ in range(50):
        divide(group, 10)
        assert (modest.given, greedy.given) == (1, 9)
    modest.want = 1000
    divide(group, 10)
    assert abs(modest.given - greedy.given) <= 1


def test_leaving_takes_empty_groups_along() -> None:
    root = Group()
    root.group("a").group("x").join(0, 1.0)
    root.group("a").group("y").join(0, 1.0)
    root.leave("a", "x", 0)
    assert list(root.group("a").members) == ["y"]
    root.leave("a", "y", 0)
    assert not root.members


@settings(max_examples=60)
@given(data=st.data(), weights=st.lists(WEIGHTS, min_size=1, max_size=4), own=WEIGHTS)
def test_whoever_comes_and_goes_each_has_its_turn(
    data: st.DataObject, weights: list[float], own: float
) -> None:
    """The bound of ``Group``, against mates that leave as soon as they have been served."""
    group = Group()
    mine = group.join("mine", own)
    mine.want = 10**6
    heaviest = max(own, *weights)
    most = len(weights) + 1
    bound = most * (2 + heaviest / own)
    waited = 0
    mates: dict[int, Sharer] = {}
    names = iter(range(10**6))
    for _ in range(150):
        while len(mates) < len(weights):
            name = next(names)
            mates[name] = group.join(name, data.draw(st.sampled_from(weights)))
            mates[name].want = data.draw(st.integers(1, 20))
        divide(group, 1)
        waited = 0 if mine.given else waited + 1
        assert waited <= bound
        for name, mate in list(mates.items()):
            mate.want -= mate.given
            if not mate.want:
                group.leave(name)
                del mates[name]


def test_groups_that_come_and_go_do_not_push_others_aside() -> None:
    root = Group()
    root.group("mine").join(0, 1.0).want = 100
    turns, present = [], []
    for name in range(40):
        root.group(name).join(0, 1.0).want = 1
        present.append(name)
        divide(root, 1)
        turns.append(root.group("mine").given)
        for served in [n for n in present if root.group(n).given]:
            root.leave(served, 0)
            present.remove(served)
        if len(present) > 2:
            root.leave(present.pop(0), 0)
    assert sum(turns) >= 40 // 9
