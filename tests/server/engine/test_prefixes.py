"""What is known of texts that begin alike, on states that are plain numbers."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.prefixes import LEAST_WAIT, Prefixes, Trace, common, is_hopeful
from server.engine.solve import Solved

TEXT = [*range(100, 130)]
tokens = st.lists(st.integers(0, 2), max_size=12)


def trace(
    given_tokens: list[int],
    *,
    states: int = 0,
    key: object = "ann",
    tol: float = 1e-3,
    priority: int = 1,
    residual: float = 1e-4,
) -> Trace[int]:
    made = Trace[int](key=key, tokens=list(given_tokens), tol=tol, priority=priority)
    solve(made, states, residual=residual)
    return made


def solve(made: Trace[int], count: int, *, residual: float = 1e-4) -> None:
    """The next tokens are accepted; a state is its token, told twice."""
    for token in made.tokens[len(made.states) :][:count]:
        made.states.append(2 * token)
        made.solved.append(Solved(5, residual, "converged"))


def kept(prefixes: Prefixes[int], made: Trace[int]) -> Trace[int]:
    prefixes.open(made)
    prefixes.close(made)
    return made


@given(tokens, tokens)
def test_common(one: list[int], other: list[int]) -> None:
    count = common(one, other)
    assert one[:count] == other[:count]
    assert count == min(len(one), len(other)) or one[count] != other[count]


@given(st.lists(st.tuples(tokens, st.integers(0, 12)), max_size=6), tokens)
def test_the_longest_known_beginning_is_found(
    known: list[tuple[list[int], int]], wanted: list[int]
) -> None:
    prefixes = Prefixes[int](max_tokens=1000)
    for i, (text, states) in enumerate(known):
        made = trace(text, states=states)
        prefixes.open(made)
        if i % 2:
            prefixes.close(made)
    expected = max((common(text[:states], wanted) for text, states in known), default=0)
    states_, solved = prefixes.find(trace(wanted))
    assert states_ == [2 * token for token in wanted[:expected]]
    assert len(solved) == expected


def test_nobody_learns_from_another_key() -> None:
    prefixes = Prefixes[int](max_tokens=100)
    kept(prefixes, trace(TEXT, states=20))
    open_one = trace(TEXT, states=10)
    prefixes.open(open_one)
    stranger = trace(TEXT, key="bob")
    assert prefixes.find(stranger) == ([], [])
    assert prefixes.lead(stranger, known=0) is None


def test_a_state_that_is_too_loose_ends_what_can_be_used() -> None:
    prefixes = Prefixes[int](max_tokens=100)
    made = trace(TEXT, states=5)
    solve(made, 1, residual=5e-3)
    solve(made, 5)
    kept(prefixes, made)
    assert len(prefixes.find(trace(TEXT))[0]) == 5
    assert len(prefixes.find(trace(TEXT, tol=1e-2))[0]) == 11
    assert prefixes.find(trace(TEXT, tol=1e-5)) == ([], [])


def test_room_is_made_by_what_was_unused_longest() -> None:
    prefixes = Prefixes[int](max_tokens=30)
    texts = [[i, *range(9)] for i in range(3)]
    for text in texts:
        kept(prefixes, trace(text, states=10))
    assert prefixes.kept_tokens == 30
    assert prefixes.find(trace(texts[0]))[0]
    kept(prefixes, trace([9, 9], states=2))
    assert prefixes.kept_tokens == 22
    found = [len(prefixes.find(trace(text))[0]) for text in texts]
    assert found == [10, 0, 10]
    kept(prefixes, trace([7] * 31, states=31))
    assert prefixes.kept_tokens == 22, "what is larger than all room is not kept"


def test_what_is_known_already_is_not_kept_twice() -> None:
    prefixes = Prefixes[int](max_tokens=100)
    kept(prefixes, trace(TEXT, states=10))
    kept(prefixes, trace(TEXT, states=6))
    assert prefixes.kept_tokens == 10
    kept(prefixes, trace(TEXT, states=15))
    assert prefixes.kept_tokens == 15, "it takes the shorter one's place"
    kept(prefixes, trace(TEXT, states=15, residual=1e-6))
    assert prefixes.kept_tokens == 15, "a tighter one takes a looser one's place"
    kept(prefixes, trace(TEXT, states=20, residual=9e-4))
    assert prefixes.kept_tokens == 35, "a longer looser one has a place of its own"
    kept(prefixes, trace(TEXT))
    assert prefixes.kept_tokens == 35


def test_a_history_that_is_over_is_forgotten() -> None:
    prefixes = Prefixes[int](max_tokens=100)
    kept(prefixes, trace(TEXT, states=10, key="job"))
    kept(prefixes, trace(TEXT, states=3))
    prefixes.forget("job")
    assert prefixes.kept_tokens == 3
    assert prefixes.find(trace(TEXT, key="job")) == ([], [])


class TestLeads:
    def lead(self, leader: Trace[int], follower: Trace[int], known: int = 0) -> int | None:
        prefixes = Prefixes[int](max_tokens=200)
        prefixes.open(leader)
        prefixes.open(follower)
        lead = prefixes.lead(follower, known=known)
        assert lead is None or lead.trace is leader
        return None if lead is None else lead.count

    def test_one_that_solves_the_same_tokens(self) -> None:
        assert self.lead(trace(TEXT), trace([*TEXT[:20], 1, 2])) == 20
        assert self.lead(trace(TEXT), trace(TEXT)) == 30

    def test_what_it_saves_must_be_worth_it(self) -> None:
        short = trace(TEXT[:LEAST_WAIT])
        assert self.lead(trace(TEXT), short) == LEAST_WAIT
        assert self.lead(trace(TEXT), short, known=1) is None

    def test_it_must_be_as_good_and_as_quick(self) -> None:
        leader = {"tol": 1e-3, "priority": 1}
        for changes in ({"tol": 9e-4}, {"tol": 0.5}, {"priority": 2}):
            follower = trace(TEXT, **{**leader, **changes})  # type: ignore[arg-type]
            assert self.lead(trace(TEXT), follower) is None
        assert self.lead(trace(TEXT), trace(TEXT, tol=9e-3)) == 30
        assert self.lead(trace(TEXT), trace(TEXT, priority=0)) == 30

    def test_one_that_has_failed_a_token_is_not_followed_further(self) -> None:
        leader, follower = trace(TEXT, states=3), trace(TEXT)
        assert is_hopeful(leader, follower, 30)
        solve(leader, 1, residual=0.5)
        assert self.lead(leader, follower) is None
        assert is_hopeful(leader, follower, 3)

    def test_nobody_waits_for_itself_or_for_what_has_ended(self) -> None:
        prefixes = Prefixes[int](max_tokens=200)
        first = trace(TEXT)
        prefixes.open(first)
        assert prefixes.lead(first, known=0) is None
        second = trace(TEXT)
        prefixes.open(second)
        prefixes.close(first)
        assert prefixes.lead(second, known=0) is None
        assert not first.is_open

    def test_no_further_than_traces_go(self) -> None:
        prefixes = Prefixes[int](max_tokens=40)
        prefixes.open(trace(TEXT))
        follower = trace(TEXT)
        lead = prefixes.lead(follower, known=0)
        assert lead is not None
        assert lead.count == prefixes.longest == 10
