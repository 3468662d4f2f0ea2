"""What is repeated, how often and after how long."""

import re

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from client._retry import ON_UNAVAILABLE, Attempts, RetryPolicy
from client.aio import AsyncClient
from client.errors import Aborted, DeadlineExceeded, ErrorDetails, NotFound, Unavailable
from client.sync import Client
from tests.client.fake_server import Failure

GONE = Failure(code=grpc.StatusCode.UNAVAILABLE)
BUSY = Failure(code=grpc.StatusCode.ABORTED)

SAFE = {
    "Score": lambda client: client.score("a b"),
    "Tokenize": lambda client: client.tokenize("a b"),
    "Detokenize": lambda client: client.detokenize([1]),
    "ListModels": lambda client: client.models(),
    "GetModel": lambda client: client.model(),
    "GetSession": lambda client: client.get_session("s1"),
    "ListSessions": lambda client: client.list_sessions(),
}
UNSAFE = {
    "Score": lambda client: client.score("a b", session="s1"),
    "CreateSession": lambda client: client.create_session(),
    "ForkSession": lambda client: client.fork_session("s1"),
    "DeleteSession": lambda client: client.delete_session("s1"),
}
QUICK = RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.002)


@pytest.mark.parametrize("method", SAFE)
def test_a_call_that_changes_nothing_is_repeated(fake, client, waits, method):
    fake.queue(method, GONE, GONE)
    SAFE[method](client)
    assert fake.methods() == [method] * 3
    assert len(waits) == 2


@pytest.mark.parametrize("method", UNSAFE)
def test_a_call_that_changes_a_session_is_not_repeated(fake, client, waits, method):
    fake.queue(method, GONE)
    with pytest.raises(Unavailable, match="scripted"):
        UNSAFE[method](client)
    assert fake.methods() == [method]
    assert waits == []


def test_candidates_leave_the_session_alone_and_are_repeated(fake, client):
    fake.queue("Score", GONE)
    client.score(session="s1", candidates=["a", "b"])
    assert fake.methods() == ["Score"] * 2


@pytest.mark.parametrize("failure", [Failure(code=grpc.StatusCode.NOT_FOUND)])
def test_another_status_is_not_repeated(fake, client, failure):
    fake.queue("GetSession", failure)
    with pytest.raises(NotFound, match="scripted"):
        client.get_session("s1")
    assert fake.methods() == ["GetSession"]


def test_attempts_have_an_end(fake, client, waits):
    fake.queue("GetModel", *[GONE] * 9)
    with pytest.raises(Unavailable, match="scripted"):
        client.model()
    assert len(fake.calls) == 4
    assert len(waits) == 3


def test_the_deadline_is_that_of_all_attempts_together(fake, waits):
    fake.queue("GetModel", *[GONE] * 9)
    policy = RetryPolicy(initial_backoff_s=20.0, max_backoff_s=20.0)
    with (
        Client(fake.address, timeout_s=5.0, retry=policy, sleep=waits.append) as client,
        pytest.raises(Unavailable, match="scripted"),
    ):
        client.model()
    assert len(fake.calls) == 1, "a wait past the deadline must not be begun"
    assert 0 < fake.calls[0].time_remaining_s < 6.0


def test_a_deadline_in_the_past_fails_at_once(fake, client):
    with pytest.raises(DeadlineExceeded):
        client.score("a", timeout_s=-1.0)
    assert fake.calls == []


def test_the_server_may_ask_for_a_longer_wait(fake, client, waits):
    info = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=7))
    fake.queue("GetModel", Failure(code=grpc.StatusCode.UNAVAILABLE, details=(info,)))
    client.model()
    assert waits == [7.0]


def test_deleting_at_the_end_waits_for_the_last_call(fake, client, waits):
    fake.queue("DeleteSession", BUSY, BUSY)
    with client.session():
        pass
    assert fake.methods() == ["CreateSession"] + ["DeleteSession"] * 3
    assert len(waits) == 2


def test_deleting_by_hand_does_not_wait(fake, client):
    fake.queue("DeleteSession", BUSY)
    with pytest.raises(Aborted, match="scripted"):
        client.delete_session("s1")


@pytest.mark.parametrize("method", SAFE)
async def test_the_asyncio_client_repeats_the_same_calls(fake, method):
    fake.queue(method, GONE)
    async with AsyncClient(fake.address, retry=QUICK) as client:
        await SAFE[method](client)
    assert fake.methods() == [method] * 2


@pytest.mark.parametrize("method", UNSAFE)
async def test_nor_does_the_asyncio_client_repeat_the_others(fake, method):
    fake.queue(method, GONE)
    async with AsyncClient(fake.address, retry=QUICK) as client:
        with pytest.raises(Unavailable, match="scripted"):
            await UNSAFE[method](client)
    assert fake.methods() == [method]


@given(attempt=st.integers(1, 40), jitter=st.floats(0, 1, exclude_max=True))
def test_the_wait_grows_to_its_bound(attempt, jitter):
    policy = RetryPolicy(initial_backoff_s=0.1, multiplier=2.0, max_backoff_s=2.0)
    longest = min(0.1 * 2.0 ** (attempt - 1), 2.0)
    assert longest / 2 <= policy.backoff_s(attempt, jitter=jitter) <= longest


def test_a_wait_longer_than_the_time_left_is_not_begun():
    attempts = Attempts(RetryPolicy(), retry_on=ON_UNAVAILABLE, timeout_s=3.0)
    assert attempts.delay_s(Unavailable("x", details=ErrorDetails(retry_after_s=4.0))) is None
    assert attempts.delay_s(Unavailable("x", details=ErrorDetails(retry_after_s=1.0))) == 1.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_attempts", 0, "max_attempts must be at least 1, got 0"),
        ("initial_backoff_s", 0.0, "initial_backoff_s must be above 0, got 0.0"),
        ("multiplier", 0.5, "multiplier must be at least 1, got 0.5"),
        ("max_backoff_s", 0.01, "max_backoff_s must be at least initial_backoff_s = 0.1, got 0.01"),
    ],
)
def test_a_policy_out_of_bounds_is_refused(field, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RetryPolicy(**{field: value})
