"""No principal uses more than it may, and others notice nothing of it."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, session_pb2
from deqlm.v1.common_pb2 import BUDGET_POLICY_ERROR
from server.call import Call
from server.engine.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineStopped,
    NotConverged,
    OutOfMemory,
    QueueFull,
)
from server.errors import SlowReader
from server.events import Events
from server.security.errors import QuotaExceeded
from server.security.principals import Principal, Quotas
from server.security.quotas import Bucket, Meter, Meters
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, fails, to_input
from tests.server.security.people import TOKENS, people, stubs_of, write
from tests.server.test_contention import wait_for, wait_until_idle, wait_until_running


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

    def test_another_size_forgets_nothing(self):
        bucket = Bucket(60, now=0.0)
        bucket.take(90, now=0.0)
        for size in (600, 6, 60):
            bucket.resize(size, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(31.0), "the debt is what it was"
        bucket.resize(120, now=30.0)
        assert bucket.wait_s(60, now=30.0) == 0.0
        assert bucket.wait_s(61, now=30.0) == pytest.approx(0.5)

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
        meter.give_back(10)
        meter.take_tokens(7)

    def test_other_quotas_are_no_full_ones(self):
        meters = Meters(Clock())

        def ann(most):
            quotas = Quotas(tokens_per_minute=most)
            return meters.of(Principal(name="ann", rights=frozenset(), quotas=quotas))

        ann(100).take_tokens(60)
        with pytest.raises(QuotaExceeded):
            ann(50).take_tokens(1)
        with pytest.raises(QuotaExceeded):
            ann(101).take_tokens(42)
        ann(101).take_tokens(41)

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
    told = is_refused(server, lambda: of(server).score([1, 2]), "tokens")
    assert 60 < told.retry_s <= 72, "and is paid for afterwards"


def test_generations_side_by_side_do_not_overspend(guarded):
    server = guarded(tokens_per_minute=50)
    stop = generation_pb2.StopOptions(max_tokens=40, ignore_eos=True)
    endless = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop, solver=ENDLESS)
    first = of(server).generate(endless)
    wait_until_running(server)
    is_refused(server, lambda: list(of(server).generate(endless)), "tokens")
    first.cancel()
    wait_until_idle(server)
    assert of(server).score([7] * 48).position == 48, "what it did not draw is there again"


def test_what_a_client_breaks_off_while_it_waits_costs_nothing(make_server, tmp_path):
    quotas = {"tokens_per_minute": 60}
    path = write(tmp_path / "auth.yaml", people(ann={"quotas": quotas}))
    server = make_server(auth_file=path, open_metrics=True, max_running=1)
    blocker = of(server, "bob").begin_score([7] * 50, solver=ENDLESS)
    wait_until_running(server)
    for _ in range(3):
        call = of(server).begin_score([7] * 55)
        wait_for(lambda: server.engine().snapshot().waiting_jobs == 1)
        call.cancel()
        wait_for(lambda: server.engine().snapshot().waiting_jobs == 0)
        late = of(server).scoring.Score.future(
            scoring_pb2.ScoreRequest(input=to_input([7] * 55)),
            metadata=of(server).metadata,
            timeout=0.2,
        )
        assert fails(late.result).code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    blocker.cancel()
    wait_until_idle(server)
    assert of(server).score([7] * 55).position == 55


def test_what_is_not_drawn_is_given_back(guarded):
    server = guarded(tokens_per_minute=50)
    stop = generation_pb2.StopOptions(max_tokens=40, stop_ids=range(server.engine().config.n_token))
    request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)
    assert list(of(server).generate(request))[-1].finished.generated_tokens == 1
    assert of(server).score([7] * 45).position == 45


class TestFailedWork:
    """The server's failures cost nothing; what a client breaks off costs what is solved by then."""

    def call(self):
        meter = Meter("ann", Quotas(tokens_per_minute=100), Clock())
        return Call(None, "Score", "id", "ann", "owner ann", 0.0, None, meter=meter)

    def events(self, solved=None):
        events = Events(None)
        events.solved = solved
        return events

    @pytest.mark.parametrize(
        ("error", "left"),
        [
            (EngineFailed("broken"), 100),
            (QueueFull("full", retry_after_s=1.0), 100),
            (OutOfMemory("none", retry_after_s=1.0), 100),
            (EngineStopped("over"), 100),
            (asyncio.CancelledError(), 37),
            (DeadlineExceeded("late"), 37),
            (NotConverged("far"), 37),
            (SlowReader(1.0), 37),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("solved", [None, 0, 20, 60, 63])
    def test_what_is_left(self, error, left, solved):
        call, events = self.call(), self.events(solved)
        if left < 100 and solved is not None:
            left += 60 - min(solved, 60)
        with pytest.raises(type(error)), call.charged(60, events, more=40) as charge:
            charge.used += 3
            raise error
        with call.charged(left, events):
            pass
        with pytest.raises(QuotaExceeded), call.charged(1, events):
            raise AssertionError

    def test_unconverged(self, guarded):
        server = guarded(tokens_per_minute=100)
        told = fails(lambda: of(server).score([7] * 60, budget=common_pb2.Budget(max_calls=0)))
        assert told.code == "INVALID_ARGUMENT"
        tight = common_pb2.SolverOptions(max_nfe=1, tol=1e-9, policy=BUDGET_POLICY_ERROR)
        for _ in range(3):
            assert fails(lambda: of(server).score([7] * 60, solver=tight)).reason == "UNCONVERGED"
        assert of(server).score([7] * 60).position == 60, "few of them were solved"


def test_a_file_that_is_read_anew_does_not_fill_quotas(guarded):
    server = guarded(tokens_per_minute=60)
    of(server).score([7] * 50)
    for most in (61, 60):
        write(server.server.config.auth_file, people(ann={"quotas": {"tokens_per_minute": most}}))
        server.server.reload()
        is_refused(server, lambda: of(server).score([7] * 30), "tokens")


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
