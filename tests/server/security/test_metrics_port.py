"""Whoever holds connections of the metrics' port open does not hold the server."""

import contextlib
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from server import metrics_endpoint
from server.metrics_endpoint import MetricsEndpoint
from tests.server.security.frames import connect, is_closed

PATIENCE_S = 0.5


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(metrics_endpoint, "_MOST_CONNECTIONS", 2)
    monkeypatch.setattr(metrics_endpoint._Handler, "timeout", PATIENCE_S)
    registry = CollectorRegistry()
    Gauge("held", "A gauge", registry=registry).set(3)
    endpoint = MetricsEndpoint(registry, host="127.0.0.1", port=0)
    yield endpoint
    endpoint.close()


def page(endpoint):
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_silent_connections_end_and_more_than_there_is_room_for_at_once(endpoint):
    address = f"127.0.0.1:{endpoint.port}"
    before = threading.active_count()
    with connect(address) as first, connect(address) as second, connect(address) as third:
        assert is_closed(third)
        assert threading.active_count() <= before + 4, "a thread and a clock for each"
        assert is_closed(first)
        assert is_closed(second)
    for _ in range(10):
        while threading.active_count() > before:  # room is given back with the thread's end
            threading.Event().wait(0.01)
        assert "held 3.0" in page(endpoint)


def test_a_byte_now_and_then_is_not_enough(endpoint, monkeypatch):
    monkeypatch.setattr(metrics_endpoint, "_LONGEST_S", 2.0)
    with connect(f"127.0.0.1:{endpoint.port}") as connection:
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(PATIENCE_S / 10):
                    connection.sendall(b"G")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert is_closed(connection)
        finally:
            ended.set()
            dripping.join()
    assert "held 3.0" in page(endpoint)


def test_one_address_does_not_take_all_the_room(endpoint, monkeypatch):
    monkeypatch.setattr(metrics_endpoint, "_MOST_OF_AN_ADDRESS", 1)
    with connect(f"127.0.0.1:{endpoint.port}"):
        with connect(f"127.0.0.1:{endpoint.port}") as second:
            assert is_closed(second)
        other = socket.create_connection(
            ("127.0.0.1", endpoint.port), timeout=20, source_address=("127.0.0.2", 0)
        )
        with other:
            other.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200 OK" in other.recv(100)


def test_other_pages_and_methods_do_no_harm(endpoint):
    with connect(f"127.0.0.1:{endpoint.port}") as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert is_closed(connection)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{endpoint.port}/", method="DELETE"),
            timeout=20,
        )
    with caught.value as error:
        assert error.code in (405, 501)
    assert "held 3.0" in page(endpoint)
