"""No principal uses more than it may, and others notice nothing of it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, session_pb2
from server.security.errors import QuotaExceeded
from server.security.principals import Principal, Quotas
from server.security.quotas import Bucket, Meter, Meters
from tests.server.calls import FLUSH, TIMEOUT_S, fails, to_input
from tests.server.security.people import TOKENS, people, stubs_of, write


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TestBucket:
    def test_it_is_full_at_first_and_after_a_minute(self):
        bucket = Bucket(60, now=0.0)
        bucket.take(60, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(1.0)
        assert bucket.wait_s(30, now=0.0) == pytest.approx(30.0)
        assert bucket.wait_s(30, now=30.0) == 0.0
        assert bucket.wait_s(60, now=1000.0) == 0.0

    def test_more_than_it_holds_may_be_taken_when_it_is_full_and_is_paid_for(self):
        bucket = Bucket(60, now=0.0)
        assert bucket.wait_s(180, now=0.0) == 0.0
        bucket.take(180, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(121.0)
        assert bucket.wait_s(0, now=120.0) == pytest.approx(1.0), "nothing costs something as well"

    @given(
        rate=st.integers(1, 1000),
        asked=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=50),
    )
    def test_over_any_time_no_more_comes_out_than_came_in(self, rate, asked):
        bucket, now, taken = Bucket(rate, now=0.0), 0.0, 0
        for later, amount in asked:
            now += later
            wait_s = bucket.wait_s(amount, now)
            if wait_s > 0:
                assert bucket.wait_s(amount, now + wait_s * 1.001 + 1e-6) == 0.0, "the wait is true"
                continue
            bucket.take(amount, now)
            taken += amount
            allowed = rate + now * rate / 60
            assert taken <= allowed + max(0, amount - rate) + 1e-6


class TestMeter:
    def test_calls_at_once(self):
        meter = Meter("ann", Quotas(max_concurrent=2), Clock())
        with meter.running(), meter.running():
            with pytest.raises(QuotaExceeded, match="'ann' may use at most 2 calls at once"):
                with meter.running():
                    raise AssertionError
        with meter.running():
            pass

    def test_a_call_that_fails_is_over(self):
        meter = Meter("ann", Quotas(max_concurrent=1), Clock())
        for _ in range(3):
            with pytest.raises(KeyError), meter.running():
                raise KeyError

    def test_a_refused_call_costs_nothing(self):
        clock = Clock()
        meter = Meter("ann", Quotas(requests_per_minute=2), clock)
        for _ in range(2):
            with meter.running():
                pass
        for _ in range(5):
            with pytest.raises(QuotaExceeded) as caught, meter.running():
                raise AssertionError
            assert caught.value.retry_after_s == pytest.approx(30.0)
        clock.now = 30.0
        with meter.running():
            pass

    def test_tokens_given_back(self):
        meter = Meter("ann", Quotas(tokens_per_minute=100), Clock())
        meter.take_tokens(100)
        with pytest.raises(QuotaExceeded, match="100 tokens per minute, of which this takes 7"):
            meter.take_tokens(7)
        meter.add_tokens(-10)
        meter.take_tokens(7)

    def test_other_quotas_hold_when_the_file_says_so(self):
        meters = Meters(Clock())

        def ann(**quotas):
            return Principal(name="ann", rights=frozenset(), quotas=Quotas(**quotas))

        assert meters.of(ann()) is None
        meter = meters.of(ann(max_concurrent=1))
        with meter.running():
            assert meters.of(ann(max_concurrent=2)) is meter
            with meter.running():
                pass
            assert meters.of(ann()) is meter
            with meter.running(), meter.running():
                pass


@pytest.fixture
def guarded(make_server, tmp_path):
    """Makes a server on which ann has quotas."""

    def make(**quotas):
        path = write(tmp_path / "auth.yaml", people(ann={"quotas": quotas}))
        return make_server(auth_file=path, open_metrics=True)

    return make


def of(server, name="ann"):
    return stubs_of(server.channel, name)


def is_refused(server, call, quota):
    """What is told; the metric has moved."""
    name = f'deqlm_quota_refusals_total{{quota="{quota}"}}'
    before = server.metrics().get(name, 0.0)
    told = fails(call)
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert told.retry_s > 0
    assert told.message.startswith("'ann' may use ")
    assert server.metrics()[name] == before + 1
    return told


def test_calls_by_time(guarded):
    server = guarded(requests_per_minute=3)
    for _ in range(3):
        of(server).score("It")
    told = is_refused(server, lambda: of(server).score("It"), "requests")
    assert 0 < told.retry_s <= 20
    assert of(server, "bob").score("It").position == 1


def test_tokens_by_time(guarded):
    server = guarded(tokens_per_minute=20)
    of(server).score([7] * 15)
    told = is_refused(server, lambda: of(server).score([7] * 10), "tokens")
    assert 0 < told.retry_s <= 15
    assert of(server).score([7] * 2).position == 2
    candidates = [to_input([7] * 4), to_input([8] * 4)]
    is_refused(server, lambda: of(server).score(candidates=candidates), "tokens")
    assert of(server, "bob").score([7] * 100).position == 100


def test_generated_tokens_count(guarded):
    server = guarded(tokens_per_minute=20)
    stop = generation_pb2.StopOptions(max_tokens=40, ignore_eos=True)
    request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)
    assert len(list(of(server).generate(request))) == 42, "what has begun is finished"
    told = is_refused(server, lambda: list(of(server).generate(request)), "tokens")
    assert 60 < told.retry_s <= 72, "and is paid for afterwards"


def test_a_stream_ends_where_there_are_no_tokens_left(guarded):
    server = guarded(tokens_per_minute=10)
    session = of(server).create()
    answers = of(server).stream([[7] * 8, FLUSH, [7] * 8, FLUSH], session_id=session)
    assert next(answers).committed_position == 8
    told = fails(lambda: list(answers))
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert 0 < told.retry_s <= 36
    assert of(server).get(session).position == 8


def test_calls_at_once(guarded):
    server = guarded(max_concurrent=2)
    over = threading.Event()

    def messages():
        over.wait(TIMEOUT_S)
        yield "It"

    streams = [of(server).stream(messages()) for _ in range(2)]
    for stream in streams:
        assert dict(stream.initial_metadata())["deqlm-accepted"] == "1"
    is_refused(server, lambda: of(server).score("It"), "concurrent")
    assert of(server, "bob").score("It").position == 1
    over.set()
    for stream in streams:
        assert list(stream)[-1].final
    assert of(server).score("It").position == 1


def test_sessions(guarded):
    server = guarded(max_sessions=2)
    first, second = of(server).create(), of(server).create(model="words")
    is_refused(server, of(server).create, "sessions")
    is_refused(server, lambda: of(server).fork(first), "sessions")
    assert of(server, "bob").create()
    of(server).delete(second)
    assert of(server).fork(first).session_id
    is_refused(server, of(server).create, "sessions")
    assert of(server).score("It", session_id=first).position == 1


def test_sessions_made_at_once(guarded):
    server = guarded(max_sessions=3)
    stub, metadata = of(server).sessions, of(server).metadata
    calls = [
        stub.CreateSession.future(
            session_pb2.CreateSessionRequest(), timeout=TIMEOUT_S, metadata=metadata
        )
        for _ in range(20)
    ]
    made = sum(call.exception(timeout=TIMEOUT_S) is None for call in calls)
    assert made == len(of(server).list().sessions) == 3


def test_bytes_of_sessions(guarded):
    size = 3 * (16 + 16) * 16 * 4
    server = guarded(max_session_bytes=2 * size)
    sizes = {server.engine(name).session_bytes for name in ("pieces", "words")}
    assert sizes == {size}
    first = of(server).create()
    of(server).create()
    told = is_refused(server, of(server).create, "session_bytes")
    assert f"at most {2 * size} bytes of sessions, of which {2 * size} are in use" in told.message
    of(server).score("It", session_id=first)
    assert of(server).get(first).memory_bytes <= size


def test_a_session_made_before_is_found_at_the_limit(guarded):
    server = guarded(max_sessions=1)
    first = of(server).create(idempotency_key="a")
    assert of(server).create(idempotency_key="a") == first
    is_refused(server, lambda: of(server).create(idempotency_key="b"), "sessions")
    stub, metadata = of(server).sessions, of(server).metadata
    blob = stub.ExportSession(
        session_pb2.ExportSessionRequest(session_id=first), timeout=TIMEOUT_S, metadata=metadata
    ).blob
    request = session_pb2.ImportSessionRequest(blob=blob)
    is_refused(
        server,
        lambda: stub.ImportSession(request, timeout=TIMEOUT_S, metadata=metadata),
        "sessions",
    )


def test_a_refusal_does_not_touch_what_others_do(guarded):
    server = guarded(requests_per_minute=1, tokens_per_minute=1, max_concurrent=1, max_sessions=1)
    of(server).score("It")
    budget = common_pb2.Budget(max_calls=50)
    request = scoring_pb2.ScoreRequest(input=to_input("It was a dark night."), budget=budget)
    bob = of(server, "bob")
    running = bob.scoring.Score.future(request, timeout=TIMEOUT_S, metadata=bob.metadata)
    for _ in range(20):
        assert fails(lambda: of(server).score("It")).reason == "QUOTA_EXCEEDED"
    assert running.result(timeout=TIMEOUT_S).tokens
    assert TOKENS["ann"] not in str(server.metrics())
