"""Nothing that was acknowledged is lost when a server is killed, at whatever moment."""

from pathlib import Path

import pytest

from tests.server.kills import kill_often


@pytest.mark.timeout(300)
def test_eight_kills(tmp_path: Path, tiny_models: Path) -> None:
    outcome = kill_often(tmp_path, tiny_models / "words", kills=8)
    assert outcome.calls > 20, outcome
    assert outcome.repeats > 0, "no kill came while a call was under way"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path: Path, tiny_models: Path) -> None:
    outcome = kill_often(tmp_path, tiny_models / "words", kills=200, seed=1)
    print(outcome)
    assert outcome.calls > 500, outcome
