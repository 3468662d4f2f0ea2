"""What goes beyond a limit of the connection is refused, and others notice nothing."""

import threading

import grpc

from tests.server.calls import Stubs, fails
from tests.server.security.frames import (
    ENHANCE_YOUR_CALM,
    GOAWAY,
    PING,
    connect,
    frame,
    greet,
    is_closed,
    received,
)


def channel_of(server):
    """A connection of its own, as no other channel has."""
    return grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])


def test_metadata(make_server):
    server = make_server(max_metadata_bytes=2048)
    stubs = Stubs(server.channel)
    # gRPC's own metadata counts as well, with 32 bytes for each item.
    stubs.metadata = (("x-note", "a" * 1200),)
    assert stubs.score("It").position == 1
    stubs.metadata = (("x-note", "a" * 2500),)
    assert fails(lambda: stubs.score("It")).code == "RESOURCE_EXHAUSTED"
    assert Stubs(server.channel).score("It").position == 1


def test_the_size_of_messages(make_server):
    server = make_server(max_message_bytes=5000, max_text_bytes=4000)
    stubs = Stubs(server.channel)
    assert fails(lambda: stubs.score("a " * 2001)).reason == "INVALID_REQUEST"
    told = fails(lambda: stubs.score("a " * 3000))
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "")
    assert stubs.score("It").position == 1


def test_calls_of_one_connection(make_server):
    server = make_server(max_streams=2)
    with channel_of(server) as channel:
        stubs = Stubs(channel)
        # Settings come with the first answer; before, a client counts on more.
        assert stubs.score("It").position == 1
        streams = [stubs.stream(_endless()) for _ in range(2)]
        for stream in streams:
            assert dict(stream.initial_metadata())["deqlm-accepted"] == "1"
        # It waits at the client; a server that has it answers within milliseconds.
        assert fails(lambda: stubs.score("It", timeout=0.5)).code == "DEADLINE_EXCEEDED"
        assert Stubs(server.channel).score("It").position == 1, "another connection has its own"
        streams[0].cancel()
        assert stubs.score("It").position == 1
        streams[1].cancel()


def _endless():
    """Messages of a stream that stays open: none, until the call is over."""
    threading.Event().wait(20)
    yield "It"


def test_connections(make_server):
    server = make_server(max_connections=2)
    assert Stubs(server.channel).score("It").position == 1
    with connect(server.address) as second, connect(server.address) as third:
        assert is_closed(third)
        greet(second)
        assert next(received(second))
        # The first one's calls go on.
        assert Stubs(server.channel).score("It").position == 1


def test_a_connection_on_which_nothing_is_said(make_server):
    server = make_server(handshake_s=0.2)
    with connect(server.address) as silent:
        assert is_closed(silent)


def test_a_connection_without_calls(make_server):
    server = make_server(max_idle_s=0.2)
    with connect(server.address) as idle:
        greet(idle)
        assert GOAWAY in [kind for kind, _ in received(idle)]
    assert Stubs(server.channel).score("It").position == 1, "a client connects anew"


def test_pings(make_server):
    server = make_server(min_ping_s=60.0)
    with connect(server.address) as connection:
        greet(connection)
        # The first one is in order, and two too soon are forgiven.
        connection.sendall(frame(PING, b"12345678") * 4)
        frames = received(connection)
        answered = 0
        for kind, body in frames:
            answered += kind == PING and body == b"12345678"
            if kind == GOAWAY:
                assert int.from_bytes(body[4:8], "big") == ENHANCE_YOUR_CALM
                break
        else:
            raise AssertionError(f"the connection ended without a word, {answered} answered")
    with connect(server.address) as connection:
        greet(connection)
        connection.sendall(frame(PING, b"12345678") * 3)
        answers = (body for kind, body in received(connection) if kind == PING)
        assert [next(answers) for _ in range(3)] == [b"12345678"] * 3
    assert Stubs(server.channel).score("It").position == 1
