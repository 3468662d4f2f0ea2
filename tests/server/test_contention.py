"""Sessions, deadlines, clients and queues under contention: nothing is lost, nothing leaks."""

import threading

import grpc

from deqlm.v1 import generation_pb2
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, Stubs, as_it_was, fails

Stop = generation_pb2.StopOptions


class TestBusy:
    def test_two_calls_at_once_on_one_session(self, live_server, stubs, session):
        before = as_it_was(stubs, session)
        slow = stubs.begin_score([7] * 3000, session_id=session, solver=ENDLESS)
        wait_until_running(live_server)
        request = generation_pb2.GenerateRequest(session_id=session)
        for call in (
            lambda: stubs.score("It", session_id=session),
            lambda: list(stubs.stream(["It"], session_id=session)),
            lambda: list(stubs.generate(request)),
            lambda: stubs.fork(session),
            lambda: stubs.delete(session),
        ):
            told = fails(call)
            assert (told.code, told.reason) == ("ABORTED", "SESSION_BUSY")
            assert told.message == f"session_id {session!r} is busy with another call"
            assert told.retry_s > 0
        assert stubs.get(session).busy
        slow.cancel()
        wait_until_idle(live_server)
        assert as_it_was(stubs, session) == before

    def test_a_stream_holds_its_session(self, stubs, session):
        may_end = threading.Event()

        def messages():
            yield "It was "
            yield FLUSH
            may_end.wait(TIMEOUT_S)

        responses = stubs.stream(messages(), session_id=session)
        assert not next(responses).final
        assert fails(lambda: stubs.score("It", session_id=session)).code == "ABORTED"
        may_end.set()
        assert any(response.final for response in responses)
        # The client knows that it is over: so must the server.
        assert stubs.score("It", session_id=session).position > 0


class TestDeadlines:
    def test_in_the_past(self, stubs, session):
        before = as_it_was(stubs, session)
        told = fails(lambda: stubs.score("It", session_id=session, timeout=1e-9))
        assert told.code == "DEADLINE_EXCEEDED"
        assert as_it_was(stubs, session) == before

    def test_while_solving(self, live_server, stubs, session):
        before = as_it_was(stubs, session)
        fields = {"session_id": session, "solver": ENDLESS}
        assert fails(lambda: stubs.score([7] * 3000, timeout=0.3, **fields)).code == (
            "DEADLINE_EXCEEDED"
        )
        wait_until_idle(live_server)  # behind another the next one would be refused at once
        request = generation_pb2.GenerateRequest(stop=Stop(max_tokens=4000), **fields)
        assert fails(lambda: list(stubs.generate(request, timeout=0.3))).code == (
            "DEADLINE_EXCEEDED"
        )
        wait_until_idle(live_server)
        assert as_it_was(stubs, session) == before


class TestVanishingClients:
    def test_while_generating(self, live_server, stubs, session):
        before = as_it_was(stubs, session)
        stop = Stop(max_tokens=4000, ignore_eos=True)
        channel = grpc.insecure_channel(live_server.address)
        request = generation_pb2.GenerateRequest(session_id=session, stop=stop)
        responses = Stubs(channel, owner="ann").generate(request)
        assert next(responses).HasField("started")
        assert next(responses).HasField("token")
        channel.close()
        wait_until_idle(live_server)
        assert as_it_was(stubs, session) == before
        assert stubs.score("It", session_id=session).position == before[0] + 1

    def test_while_streaming(self, live_server, stubs, session):
        sessions = live_server.engine().snapshot().sessions
        used = live_server.engine().snapshot().slots_used
        forever = threading.Event()
        for config in ({}, {"session_id": session}):
            channel = grpc.insecure_channel(live_server.address)

            def messages():
                yield "It was "
                yield FLUSH
                forever.wait(TIMEOUT_S)

            responses = Stubs(channel, owner="ann").stream(messages(), **config)
            assert next(responses).committed_position > 0
            channel.close()
        wait_until_idle(live_server)
        forever.set()
        snapshot = live_server.engine().snapshot()
        assert (snapshot.sessions, snapshot.slots_used) == (sessions, used)
        # What a response has told is committed, the rest is not.
        assert not stubs.get(session).busy


class TestFullServers:
    def test_a_full_queue_refuses_at_once(self, make_server):
        server = make_server(max_running=1, max_queue=1)
        stubs = Stubs(server.channel, owner="ann")
        session = stubs.create()
        running = stubs.begin_score([7] * 3000, solver=ENDLESS)
        wait_until_running(server)
        waiting = stubs.begin_score([7] * 3000, solver=ENDLESS)
        wait_for(lambda: server.engine().snapshot().waiting_jobs == 1)
        told = fails(lambda: stubs.score("It", session_id=session))
        assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert "at most 1" in told.message
        assert told.retry_s > 0
        assert not stubs.get(session).busy
        name = 'deqlm_rejections_total{model="pieces",reason="QUEUE_FULL"}'
        assert server.metrics()[name] == 1
        running.cancel()
        waiting.cancel()
        wait_until_idle(server)
        assert stubs.score("It", session_id=session).position == 1

    def test_too_many_sessions(self, make_server):
        server = make_server(max_sessions=2)
        stubs = Stubs(server.channel)
        ids = [stubs.create(), stubs.create()]
        for call in (stubs.create, lambda: stubs.fork(ids[0]), lambda: list(stubs.stream(["It"]))):
            told = fails(call)
            assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "SESSION_LIMIT")
            assert told.retry_s > 0
        stubs.delete(ids[0])
        assert list(stubs.stream(["It"]))[-1].final
        assert stubs.create()


def wait_for(holds):
    """Wait for something of which no event tells; gives up when the test's time is over."""
    pause = threading.Event()
    while not holds():
        pause.wait(0.005)


def wait_until_running(server):
    wait_for(lambda: server.engine().snapshot().running_jobs > 0)


def wait_until_idle(server):
    """No job is in the engine and no call in the server."""
    wait_for(
        lambda: (
            server.engine().snapshot().running_jobs == 0
            and server.engine().snapshot().waiting_jobs == 0
            and server.run(server.server._guard.wait_idle(10))
        )
    )
