"""No principal uses more than it may, and others notice nothing of it."""

import asyncio
import threading
from dataclasses import replace

import pytest

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
from server.security.principals import Quotas
from server.security.quotas import Meter
from server.store.blob import read_blob, write_blob
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, fails, to_input
from tests.server.security.people import TOKENS, people, stubs_of, write
from tests.server.test_contention import wait_for, wait_until_idle, wait_until_running


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


def test_what_an_import_has_solved_again_costs_as_much_as_scoring(guarded):
    server = guarded(tokens_per_minute=60)
    bob, ann = of(server, "bob"), of(server)
    session = bob.create()
    bob.score([7] * 40, session_id=session)
    asked = session_pb2.ExportSessionRequest(session_id=session)
    whole = bob.sessions.ExportSession(asked, metadata=bob.metadata).blob
    bare = write_blob(replace(read_blob(whole).snapshot, states=None))

    def take_in(blob):
        request = session_pb2.ImportSessionRequest(blob=blob)
        return ann.sessions.ImportSession(request, timeout=TIMEOUT_S, metadata=ann.metadata)

    for _ in range(3):  # nothing has to be solved
        assert take_in(whole).session.position == 40
    assert take_in(bare).session.position == 40
    held = len(ann.list().sessions)
    told = is_refused(server, lambda: take_in(bare), "tokens")
    assert "of which this takes 40" in told.message
    assert len(ann.list().sessions) == held
    ann.score([7] * 15)
    is_refused(server, lambda: ann.score([7] * 30), "tokens")
    assert take_in(whole).session.position == 40


def test_what_is_not_drawn_is_given_back(guarded):
    server = guarded(tokens_per_minute=50)
    stop = generation_pb2.StopOptions(max_tokens=40, stop_ids=range(server.engine().config.n_token))
    request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)
    assert list(of(server).generate(request))[-1].finished.generated_tokens == 1
    assert of(server).score([7] * 45).position == 45


class TestFailedWork:
    """The server's failures cost nothing; what a client breaks off costs what is solved by then."""

    def call(self):
        meter = Meter("ann", Quotas(tokens_per_minute=100), lambda: 0.0)
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


def test_streams_have_sessions_as_well(guarded):
    server = guarded(max_sessions=2)
    ann, may_end = of(server), threading.Event()

    def messages():
        yield [1, 2]
        yield FLUSH
        may_end.wait(TIMEOUT_S)

    streams = [ann.stream(messages()) for _ in range(2)]
    for stream in streams:
        next(stream)
    is_refused(server, ann.create, "sessions")
    is_refused(server, lambda: list(ann.stream(["It"])), "sessions")
    assert of(server, "bob").create()
    may_end.set()
    for stream in streams:
        list(stream)
    session = ann.create()
    assert list(ann.stream(["It"], session_id=session))
    assert list(ann.stream(["It"]))


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


def test_bytes_of_tokens_of_streams(guarded):
    size = 3 * (16 + 16) * 16 * 4
    server = guarded(max_session_bytes=2 * size + 399)
    may_end = threading.Event()

    def messages():
        yield [7] * 100
        yield FLUSH
        may_end.wait(TIMEOUT_S)

    stream = of(server).stream(messages())
    next(stream)
    told = is_refused(server, of(server).create, "session_bytes")
    assert f"of which {size + 400} are in use" in told.message
    may_end.set()
    list(stream)
    assert of(server).create()


def test_sessions_left_in_the_store(make_server, tmp_path):
    path = write(tmp_path / "auth.yaml", people(ann={"quotas": {"max_sessions": 3}}))
    fields = {"auth_file": path, "session_store": f"sqlite:{tmp_path / 'sessions.db'}"}
    server = make_server(**fields, open_metrics=True)
    for _ in range(3):
        of(server).create()
    server.run(server.server.stop(grace_s=0.0))
    server = make_server(**fields, open_metrics=True, max_sessions=2)
    assert len(of(server).list().sessions) == 2
    is_refused(server, lambda: of(server).create(model="words"), "sessions")
    of(server).delete(of(server).list().sessions[0].session_id)
    assert of(server).create(model="words")


def test_bytes_of_tokens(guarded):
    size = 3 * (16 + 16) * 16 * 4
    server = guarded(max_session_bytes=2 * size + 399)
    session = of(server).create()
    of(server).score([7] * 100, session_id=session)
    told = is_refused(server, of(server).create, "session_bytes")
    assert f"of which {size + 400} are in use" in told.message


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
