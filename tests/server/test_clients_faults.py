"""Clients that vanish, stall, read nothing or come too late: the server holds nothing for them."""

import threading
import time

import grpc

from deqlm.v1 import generation_pb2
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, Stubs, fails, to_input
from tests.server.proxy import Proxy
from tests.server.test_contention import wait_for, wait_until_idle, wait_until_running

LONG = generation_pb2.StopOptions(max_tokens=4000, ignore_eos=True)
SHORT = generation_pb2.StopOptions(max_tokens=3, ignore_eos=True)


def generation(**fields):
    return generation_pb2.GenerateRequest(prompt=to_input("It"), stop=LONG, **fields)


def test_a_client_that_is_cut_off_amid_a_stream(live_server, stubs, session):
    before = stubs.get(session).position
    with Proxy(live_server.address) as proxy, grpc.insecure_channel(proxy.address) as channel:
        responses = Stubs(channel, owner="ann").generate(generation(session_id=session))
        assert next(responses).HasField("started")
        proxy.cut()
        assert fails(lambda: list(responses)).code in ("UNAVAILABLE", "UNKNOWN", "CANCELLED")
    wait_until_idle(live_server)
    assert stubs.get(session).position == before
    assert stubs.score("It", session_id=session).position == before + 1


def test_a_half_open_connection_gives_its_session_back(make_server):
    """The client's machine is gone without a word; keepalive finds out."""
    server = make_server(keepalive_s=0.5)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create()
    may_end = threading.Event()

    def messages():
        yield "It was "
        yield FLUSH
        may_end.wait(TIMEOUT_S)

    with Proxy(server.address) as proxy, grpc.insecure_channel(proxy.address) as channel:
        responses = Stubs(channel, owner="ann").stream(messages(), session_id=session)
        position = next(responses).committed_position
        proxy.stall()
        assert stubs.get(session).busy
        wait_for(lambda: not stubs.get(session).busy)
        assert stubs.get(session).position >= position  # what was told is kept
        may_end.set()
    server.check()


def test_a_reader_that_does_not_read_is_ended_and_hurts_nobody(make_server):
    server = make_server(send_timeout_s=0.5)
    stubs = Stubs(server.channel, owner="bob")
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(server.address, options=narrow) as channel:
        request = generation(session_id=Stubs(channel, owner="ann").create(), logprobs=100)
        responses = Stubs(channel, owner="ann").generate(request)
        wait_until_running(server)
        # Nobody reads. Meanwhile others are served.
        for _ in range(5):
            other = generation_pb2.GenerateRequest(prompt=to_input("It"), stop=SHORT)
            assert [*stubs.generate(other)][-1].finished.generated_tokens == 3
        wait_until_idle(server)
        assert server.engine().snapshot().running_jobs == 0
        told = fails(lambda: list(responses))
        assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
    server.check()


def test_a_deadline_between_the_messages_of_a_stream(live_server, stubs, session):
    def messages():
        yield "It was "
        yield FLUSH
        threading.Event().wait(4.0)

    from tests.server.calls import stream_messages

    responses = stubs.scoring.ScoreStream(
        stream_messages(messages(), {"session_id": session}), timeout=2.0, metadata=stubs.metadata
    )
    position = next(responses).committed_position
    assert fails(lambda: list(responses)).code == "DEADLINE_EXCEEDED"
    wait_until_idle(live_server)
    view = stubs.get(session)
    assert not view.busy
    assert view.position >= position  # what was told is kept


def test_a_deadline_in_the_queue(make_server):
    server = make_server(max_running=1)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create()
    running = stubs.begin_score([7] * 3000, solver=ENDLESS)
    wait_until_running(server)
    told = fails(lambda: stubs.score("It", session_id=session, timeout=0.3))
    assert told.code == "DEADLINE_EXCEEDED"
    running.cancel()
    wait_until_idle(server)
    assert stubs.score("It", session_id=session).position == 1


def test_an_idle_stream_does_not_hold_up_a_stop(make_server):
    server = make_server(grace_s=60.0)
    never = threading.Event()

    def messages():
        yield "It "
        yield FLUSH
        never.wait(TIMEOUT_S)

    idle = Stubs(server.channel).stream(messages())
    next(idle)
    begun = time.monotonic()
    server.run(server.server.stop())
    assert time.monotonic() - begun < 15
    told = fails(lambda: list(idle))
    assert (told.code, told.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    never.set()


def test_a_defect_in_one_call_is_internal_and_others_go_on(make_server):
    server = make_server()
    ann, bob = (Stubs(server.channel, owner=name) for name in ("ann", "bob"))
    slow = bob.generate(generation())
    assert next(slow).HasField("started")
    engine, real = server.engine(), server.engine()._slab.load

    def breaks(*slots):
        engine._slab.load = real
        raise RuntimeError("device lost")

    session = ann.create()
    ann.score("It", session_id=session)
    engine._slab.load = breaks
    told = fails(lambda: ann.score("was", session_id=session))
    assert (told.code, told.reason) == ("INTERNAL", "INTERNAL")
    assert told.metadata["request_id"] in told.message
    assert next(slow).HasField("token")
    slow.cancel()
    assert ann.score("was", session_id=session).position == 3
    wait_until_idle(server)


def test_no_memory_beside_the_engine(make_server, monkeypatch):
    """Of a call that is being read, say: it fails as one does for which the engine has none."""
    server = make_server()
    stubs = Stubs(server.channel)
    session = stubs.create()

    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(type(server.engine().tokenizer), "encode", full)
    told = fails(lambda: stubs.score("It was", session_id=session))
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
    assert told.retry_s > 0
    monkeypatch.undo()
    assert stubs.score("It", session_id=session).position == 1
    wait_until_idle(server)


def test_the_owners_share_of_the_queue(make_server):
    server = make_server(max_running=1, max_queue=8, max_owner_queue=2)
    ann, bob = (Stubs(server.channel, owner=name) for name in ("ann", "bob"))
    calls = [ann.begin_score([7] * 3000, solver=ENDLESS)]
    wait_until_running(server)
    calls += [ann.begin_score([7] * 30, solver=ENDLESS) for _ in range(2)]
    wait_for(lambda: server.engine().snapshot().waiting_jobs == 2)
    told = fails(lambda: ann.score("It"))
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert "of one owner must be at most 2" in told.message
    assert told.retry_s > 0
    calls.append(bob.begin_score("It"))
    wait_for(lambda: server.engine().snapshot().waiting_jobs == 3)
    for call in calls:
        call.cancel()
    wait_until_idle(server)


def test_refusals_are_quick(make_server):
    server = make_server(max_running=1, max_queue=1)
    stubs = Stubs(server.channel, owner="ann")
    calls = [stubs.begin_score([7] * 3000, solver=ENDLESS)]
    wait_until_running(server)
    calls.append(stubs.begin_score([7] * 30, solver=ENDLESS))
    wait_for(lambda: server.engine().snapshot().waiting_jobs == 1)
    took = []
    for _ in range(30):
        begun = time.perf_counter()
        assert fails(lambda: stubs.score("It")).reason == "QUEUE_FULL"
        took.append(time.perf_counter() - begun)
    assert sorted(took)[15] < 0.1
    for call in calls:
        call.cancel()
    wait_until_idle(server)


def test_what_is_refused_is_not_read_first(make_server, tiny_models):
    """Words that nobody knows are found by the tokenizer; what was done before, in the session."""
    model = (f"pieces={tiny_models / 'words'}",)  # the name that helpers ask for
    server = make_server(model=model, max_running=1, max_queue=1)
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create()
    done = stubs.score("the cat", session_id=session, idempotency_key="a")
    calls = [stubs.begin_score([7] * 3000, solver=ENDLESS)]
    wait_until_running(server)
    calls.append(stubs.begin_score([7] * 30, solver=ENDLESS))
    wait_for(lambda: server.engine().snapshot().waiting_jobs == 1)
    assert fails(lambda: stubs.score("zebras")).reason == "QUEUE_FULL"
    request = generation_pb2.GenerateRequest(prompt=to_input("zebras"), stop=SHORT)
    assert fails(lambda: list(stubs.generate(request))).reason == "QUEUE_FULL"
    again = stubs.score("the cat", session_id=session, idempotency_key="a")
    assert (again.position, again.tokens) == (done.position, done.tokens)
    for call in calls:
        call.cancel()
    wait_until_idle(server)
    assert fails(lambda: stubs.score("zebras")).reason == "UNKNOWN_TEXT"
