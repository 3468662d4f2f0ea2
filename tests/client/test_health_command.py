"""`deqlm health`: its words and its exit code."""

import json
import socket
import threading

from client.sync import Client


def test_a_service_that_does_not_serve_yet(deqlm, fake):
    fake.health.set("deqlm.v1.ScoringService", 2)
    assert deqlm("health")[:2] == (1, "not_serving\n")
    fake.set_ready("")
    assert deqlm("health", "--live")[:2] == (0, "serving\n")


def test_a_service_that_serves(deqlm, fake):
    fake.set_ready("deqlm.v1.ScoringService")
    assert deqlm("health")[:2] == (0, "serving\n")
    code, out, _ = deqlm("health", "--json")
    assert (code, json.loads(out)["status"]) == (0, "serving")


def test_a_service_that_is_not_there(deqlm):
    code, _, err = deqlm("health", "--service", "nobody")
    assert code == 1
    assert err.startswith("deqlm health: NOT_FOUND: ")


def test_waiting_ends_when_it_serves(deqlm, fake):
    fake.health.set("deqlm.v1.ScoringService", 2)
    seen = threading.Event()

    def become_ready():
        with Client(fake.address) as client:
            assert client.health("deqlm.v1.ScoringService").value == "not_serving"
        seen.set()
        fake.set_ready("deqlm.v1.ScoringService")

    other = threading.Thread(target=become_ready)
    other.start()
    assert deqlm("health", "--wait-s", "60")[:2] == (0, "serving\n")
    other.join()
    assert seen.is_set()


def test_no_server(deqlm):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        code, _, err = deqlm("health", "--wait-s", "0.2", address=address)
    assert code == 1
    assert err.startswith("deqlm health: ")


def test_waiting_in_vain_says_for_what(deqlm, fake):
    fake.health.set("deqlm.v1.ScoringService", 2)
    code, out, err = deqlm("health", "--wait-s", "0.2")
    assert (code, out) == (1, "")
    place = f"deqlm.v1.ScoringService at {fake.address}"
    assert err.startswith(f"deqlm health: DEADLINE_EXCEEDED: {place} was not serving within 0.2 s;")
