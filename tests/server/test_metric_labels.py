"""Clients make no series, whatever they send, and garbage at the metrics' port harms nobody."""

import http.client
import socket

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deqlm.v1 import generation_pb2, scoring_pb2
from tests.server.calls import TIMEOUT_S, Stubs, to_input

EVIL = 'x"} 1\nevil_total{a="'


@pytest.fixture
def server(make_server):
    return make_server()


def attack(server, number):
    """One of everything that a client may name, all names new."""
    name = f"name-{number}"
    stubs = Stubs(server.channel, owner=name)
    requests = [
        (stubs.scoring.Score, scoring_pb2.ScoreRequest(input=to_input([1]), model=name + EVIL)),
        (stubs.scoring.Score, scoring_pb2.ScoreRequest(input=to_input([1]), session_id=name)),
        (stubs.scoring.Score, scoring_pb2.ScoreRequest(input=to_input([1]))),
        (stubs.generation.Generate, generation_pb2.GenerateRequest(model=name)),
    ]
    for call, request in requests:
        metadata = (*stubs.metadata, ("user-agent", name), ("x-" + name, name))
        try:
            answer = call(request, timeout=TIMEOUT_S, metadata=metadata)
            if call is stubs.generation.Generate:
                list(answer)
        except grpc.RpcError:
            pass
    for path in (f"/deqlm.v1.ScoringService/{name}", f"/deqlm.v1.{name}/Score", f"/{name}/{name}"):
        with pytest.raises(grpc.RpcError):
            server.channel.unary_unary(path)(b"", timeout=TIMEOUT_S)


def test_no_client_makes_a_series(server):
    attack(server, 0)
    before = set(server.metrics())
    for number in range(1, 30):
        attack(server, number)
    assert set(server.metrics()) == before
    assert not any("name-" in line or "evil" in line for line in before)


def ask(server, method="GET", path="/metrics", headers=None):
    host, _, port = server.metrics_address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\x00\xff" * 500,
        b"GET /metrics",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET /metrics?name[]=\xff%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=z;q=\xff\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, where none is spoken
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_at_the_port(live_server, bytes_sent, capfd):
    host, _, port = live_server.metrics_address.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(bytes_sent)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert ask(live_server)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_what_http_allows_is_answered(live_server):
    assert ask(live_server, "POST")[0] == 405
    assert ask(live_server, "OPTIONS")[0] == 200
    status, text = ask(live_server, path="/metrics?name[]=deqlm_ready&name[]=no_such_metric")
    assert (status, b"deqlm_ready 1.0" in text) == (200, True)
    assert b"deqlm_sessions" not in text
    status, text = ask(live_server, headers={"Accept": "*/*;q=a, ,;;=,application/openmetrics"})
    assert status == 200
    assert {family.name for family in text_string_to_metric_families(text.decode())}
