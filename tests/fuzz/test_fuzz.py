"""A short run over every decoder; ``make fuzz`` has the long one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.engines import by_chance
from tests.fuzz.findings import Findings
from tests.fuzz.mutations import mutated
from tests.fuzz.table import TARGETS
from tests.fuzz.target import Target

INPUTS = 100
"""By chance, for each unit of a target's share."""

# The libraries that read damaged files may warn about them.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=TARGETS.values(), ids=TARGETS.keys(), scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    """Each decoder."""
    found: Target = request.param
    return found


def test_a_decoder_takes_what_is_whole(target: Target) -> None:
    assert target.takes(target.seeds()[0])


def test_a_decoder_refuses_the_rest_in_words(target: Target, tmp_path: Path) -> None:
    found = Findings(target, tmp_path)
    by_chance(found, count=target.share * INPUTS, seed=0, done=lambda: None)
    told = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt")]
    assert not told, f"{found.places}\n" + "\n".join(told)
    assert found.taken < found.inputs, "nothing was refused: the mutations do nothing"


def test_hypothesis_finds_nothing_either(target: Target) -> None:
    seeds = target.seeds()
    near = st.randoms(use_true_random=False).map(lambda generator: mutated(seeds, generator))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300) | near)
    def try_out(data: bytes) -> None:
        target.takes(data)

    try_out()


def test_what_a_decoder_may_not_raise_is_kept_once(tmp_path: Path) -> None:
    def decode(data: bytes) -> None:
        if data[:1] == b"a" and len(data) > 3:
            raise IndexError("planted")
        raise ValueError("no")

    planted = Target("planted", lambda: [b"abcdef", b"xyz"], decode, (ValueError,))
    found = Findings(planted, tmp_path)
    by_chance(found, count=500, seed=3, done=lambda: None)
    assert found.inputs == 500
    assert len(found.places) == 1
    (text,) = tmp_path.glob("*.txt")
    assert "IndexError: planted" in text.read_text(encoding="utf-8")
    assert text.with_suffix("").read_bytes()[:1] == b"a"
