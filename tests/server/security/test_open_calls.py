"""Whoever is not let in any more has no call that goes on."""

import datetime
import threading
from contextlib import contextmanager

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from client.credentials import Tls
from client.errors import Unauthenticated
from client.sync import Client
from deqlm.v1 import generation_pb2
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, fails, failure, to_input
from tests.server.security.certificates import issue, server_options
from tests.server.security.people import TOKENS, bearer, entry, people, stubs_of, write
from tests.server.test_contention import wait_until_idle, wait_until_running


@pytest.fixture
def guarded(make_server, tmp_path):
    """A server that asks who calls."""
    path = write(tmp_path / "auth.yaml", people())
    return make_server(auth_file=path, open_metrics=True)


def now_are(server, content):
    """Another file holds from now on."""
    write(server.server.config.auth_file, content)
    server.server.reload()


class Stream:
    """A ScoreStream that says nothing more after its first tokens, until it is told to."""

    def __init__(self, server, name, session_id=None):
        self.over = threading.Event()
        fields = {} if session_id is None else {"session_id": session_id}
        self.answers = stubs_of(server.channel, name).stream(self._messages(), **fields)
        assert next(self.answers).committed_position == 3

    def _messages(self):
        yield [5, 6, 7]
        yield FLUSH
        self.over.wait(TIMEOUT_S)
        yield [8]

    def ending(self):
        """What its client is told, who says nothing meanwhile."""
        try:
            with pytest.raises(grpc.RpcError) as caught:
                list(self.answers)
            return failure(caught.value)
        finally:
            self.over.set()


def test_a_token_that_is_taken_away_ends_its_streams(guarded):
    ann, bob = stubs_of(guarded.channel, "ann"), stubs_of(guarded.channel, "bob")
    session = ann.create()
    mine, other = Stream(guarded, "ann", session), Stream(guarded, "bob")
    now_are(guarded, people(ann={"tokens": []}))
    told = mine.ending()
    assert (told.code, told.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert told.message.startswith("the caller must be known")
    assert fails(lambda: ann.get(session)).code == "UNAUTHENTICATED"
    other.over.set()
    assert list(other.answers)[-1].committed_position == 4, "nobody else notices"
    now_are(guarded, people())
    view = ann.get(session)
    assert (view.position, view.busy) == (3, False), "what was answered is kept"
    metrics = guarded.metrics()
    assert metrics['deqlm_auth_failures_total{reason="unknown_token"}'] == 2
    assert bob.score("It").position == 1


def test_a_token_that_becomes_somebody_elses_ends_them_too(guarded):
    stream = Stream(guarded, "ann")
    tokens = [entry(TOKENS["bob"]), entry(TOKENS["ann"])]
    now_are(guarded, people(ann={"tokens": []}, bob={"tokens": tokens}))
    assert stream.ending().code == "UNAUTHENTICATED"


def test_a_token_that_expires_ends_them(guarded):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=6)
    now_are(guarded, people(bob={"tokens": [entry(TOKENS["bob"], expires=soon)]}))
    assert Stream(guarded, "bob").ending().code == "UNAUTHENTICATED"
    assert datetime.datetime.now(datetime.UTC) >= soon


def test_a_right_that_is_taken_away_ends_what_needs_it(guarded):
    ann = stubs_of(guarded.channel, "ann")
    stream = Stream(guarded, "ann")
    request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), solver=ENDLESS)
    generation = ann.generate(request)
    wait_until_running(guarded)
    now_are(guarded, people(ann={"rights": ["score"]}))
    told = fails(lambda: list(generation))
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert "Generate needs the right generate, which 'ann' does not have" in told.message
    stream.over.set()
    assert list(stream.answers)[-1].final
    wait_until_idle(guarded)


def test_a_watch_of_health_ends(guarded):
    stub = health_pb2_grpc.HealthStub(guarded.channel)
    request = health_pb2.HealthCheckRequest()
    watch = stub.Watch(request, timeout=TIMEOUT_S, metadata=bearer(TOKENS["mon"]))
    assert next(watch).status == 1
    now_are(guarded, people(mon={"tokens": []}))
    assert fails(lambda: list(watch)).code == "UNAUTHENTICATED"


def test_a_stream_of_reflection_ends(guarded):
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    over = threading.Event()

    def questions():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(TIMEOUT_S)

    answers = stub.ServerReflectionInfo(
        questions(), timeout=TIMEOUT_S, metadata=bearer(TOKENS["mon"])
    )
    assert next(answers).list_services_response.service
    now_are(guarded, people(mon={"tokens": []}))
    assert fails(lambda: list(answers)).code == "UNAUTHENTICATED"
    over.set()


def keyed(session, **fields):
    stop = generation_pb2.StopOptions(max_tokens=100, ignore_eos=True)
    return generation_pb2.GenerateRequest(
        session_id=session, idempotency_key="a", prompt=to_input([1, 2]), stop=stop, **fields
    )


def test_a_call_that_goes_on_without_its_client_ends(guarded):
    ann = stubs_of(guarded.channel, "ann")
    session = ann.create()
    call = ann.generate(keyed(session, solver=ENDLESS))
    wait_until_running(guarded)
    call.cancel()
    assert fails(lambda: list(call)).code == "CANCELLED"
    now_are(guarded, people(ann={"rights": ["score"]}))
    wait_until_idle(guarded)
    now_are(guarded, people())
    assert ann.get(session).position == 0
    assert list(ann.generate(keyed(session)))[-1].finished.position == 102, "it may be sent again"


def test_who_follows_a_call_that_is_ended_has_it_done(guarded):
    """Two tokens of one principal, of which the one that has begun it is taken away."""
    tokens = [entry(TOKENS["ann"]), entry("new")]
    now_are(guarded, people(ann={"tokens": tokens}))
    old, new = stubs_of(guarded.channel, "ann"), stubs_of(guarded.channel, "new")
    session = old.create()
    fields = {"session_id": session, "idempotency_key": "a", "solver": ENDLESS}
    first = old.begin_score([5] * 30, **fields)
    wait_until_running(guarded)
    second = new.begin_score([5] * 30, **fields)
    now_are(guarded, people(ann={"tokens": tokens[1:]}))
    guarded.run(looked(guarded))
    assert fails(first.result).code == "UNAUTHENTICATED"
    assert second.result().position == new.get(session).position == 30


def test_another_file_that_says_the_same_ends_nothing(guarded):
    stream = Stream(guarded, "ann")
    tokens = [entry(TOKENS["ann"], note="the same"), entry("another")]
    quotas = {"requests_per_minute": 1000}
    now_are(guarded, people(ann={"tokens": tokens, "quotas": quotas}))
    guarded.run(looked(guarded))
    stream.over.set()
    assert list(stream.answers)[-1].final
    assert len(guarded.server._guarding.gate.open_calls) == 0


async def looked(server):
    server.server._guarding.gate.open_calls.look()


@contextmanager
def begun(server, ann):
    """A client with a certificate, and the answers of its stream, which says nothing more."""
    over = threading.Event()

    def pieces():
        yield [5, 6, 7]
        over.wait(TIMEOUT_S)

    with Client(server.address, tls=Tls(ca=ann.ca, cert=ann.cert, key=ann.key)) as client:
        answers = client.score_stream(pieces())
        assert next(answers).committed_position == 3
        try:
            yield client, answers
        finally:
            over.set()


def test_a_certificate_that_expires_ends_what_its_connection_does(make_server, tmp_path):
    authority = trustme.CA()
    files = issue(tmp_path, "server", authority, "127.0.0.1")
    server = make_server(**server_options(files, tls_client_ca=files.ca))
    # Only now: a connection and a first answer must come in time. Certificates know no fractions.
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=8)
    soon = soon.replace(microsecond=0)
    ann = issue(tmp_path, "ann", authority, "ann.example.org", not_after=soon)
    with begun(server, ann) as (client, answers):
        with pytest.raises(Unauthenticated):
            list(answers)
        assert datetime.datetime.now(datetime.UTC) >= soon
        with pytest.raises(Unauthenticated):
            client.score("It")


def test_a_certificate_that_stands_for_nobody_any_more(make_server, tmp_path):
    authority = trustme.CA()
    files = issue(tmp_path, "server", authority, "127.0.0.1")
    ann = issue(tmp_path, "ann", authority, "ann.example.org")
    path = write(tmp_path / "auth.yaml", people(ann={"identities": ["dns:ann.example.org"]}))
    server = make_server(**server_options(files, tls_client_ca=files.ca, auth_file=path))
    with begun(server, ann) as (_, answers):
        now_are(server, people())
        with pytest.raises(Unauthenticated):
            list(answers)
