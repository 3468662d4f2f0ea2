"""Nothing that was acknowledged is lost when a server is killed, at whatever moment."""

from pathlib import Path

import grpc
import pytest

from tests.server.calls import Stubs
from tests.server.killed import is_retried
from tests.server.kills import kill_often


def test_clients_put_up_with_kills_and_not_with_defects(make_server) -> None:
    server = make_server()

    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    server.engine().tokenizer.encode = broken
    with pytest.raises(grpc.RpcError) as caught:
        Stubs(server.channel).score("It")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert not is_retried(caught.value)
    with grpc.insecure_channel("127.0.0.1:1") as nobody:
        with pytest.raises(grpc.RpcError) as caught:
            Stubs(nobody).score("It")
    assert is_retried(caught.value)


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
