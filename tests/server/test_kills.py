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
def test_two_hundred_kills(
    tmp_path: Path, tiny_models: Path, request: pytest.FixtureRequest
) -> None:
    """150 with sessions in a file, 50 with sessions in Redis; where there is none, it says so."""
    model = tiny_models / "words"
    in_file = kill_often(tmp_path, model, kills=150, seed=1)
    print(in_file)
    assert in_file.calls > 500, in_file
    redis = request.getfixturevalue("redis_server")
    in_redis = kill_often(tmp_path, model, kills=50, seed=2, store=redis.url)
    print(in_redis)
    assert in_redis.calls > 150, in_redis
    for outcome in (in_file, in_redis):
        # Of each kind of traffic there was some, and sessions went to the store and came back.
        assert min(outcome.same_answers, outcome.deleted, outcome.evictions, outcome.returns) > 0
        assert outcome.repeats > 0
