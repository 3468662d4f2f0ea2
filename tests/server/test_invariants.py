"""A server's look at itself: by a call, by a command, by a signal."""

import re
import signal

from client.commands import check
from deqlm.v1 import admin_pb2, admin_pb2_grpc
from tests.server.calls import ENDLESS, TIMEOUT_S
from tests.server.test_contention import wait_until_idle, wait_until_running
from tests.server.test_process import Process


def ask(server):
    stub = admin_pb2_grpc.AdminServiceStub(server.channel)
    return stub.CheckInvariants(admin_pb2.CheckInvariantsRequest(), timeout=TIMEOUT_S)


def test_a_whole_server_has_no_problems(live_server, stubs, session):
    found = ask(live_server)
    assert (list(found.problems), found.calls, found.leases) == ([], 1, 0)


def test_amid_calls_it_counts_them(live_server, stubs, session):
    running = stubs.begin_score([7] * 3000, session_id=session, solver=ENDLESS)
    wait_until_running(live_server)
    found = ask(live_server)
    assert (list(found.problems), found.calls, found.leases) == ([], 2, 1)
    running.cancel()
    wait_until_idle(live_server)


def test_what_is_broken_is_told_and_logged(live_server, stubs, session, caplog):
    engine = live_server.engine()
    slot = engine._slots.acquire()
    lease = engine.sessions.acquire(session, "ann")
    found = ask(live_server).problems
    assert any(f"slot {slot} counts 1 holders, and 0 hold it" in p for p in found)
    assert any("are nobody's" in problem for problem in found)
    live_server.run(live_server.server.check())
    assert "invariant broken: model 'pieces': slot" in caplog.text
    engine.sessions.release(lease)
    engine._slots.release(slot)
    assert list(ask(live_server).problems) == []
    live_server.broken.found.clear()


def test_a_server_that_ends_looks_once_more(make_server, caplog):
    server = make_server()
    engine = server.engine()
    server.run(server.server.stop(grace_s=0.0))
    assert "invariant broken" not in caplog.text
    slot = engine._slots.acquire()
    server.run(server.server.stop(grace_s=0.0))
    assert f"invariant broken: model 'pieces': slot {slot}" in caplog.text
    engine._slots.release(slot)
    assert len(server.broken.found) == 1
    server.broken.found.clear()


def test_the_command(live_server, capsys):
    arguments = ["--address", live_server.address]
    assert check.main(arguments, "deqlm check") == 0
    assert capsys.readouterr().out == "nothing is wrong: 1 calls, 0 leases, 0 streams\n"
    slot = live_server.engine()._slots.acquire()
    assert check.main(arguments, "deqlm check") == 1
    assert f"slot {slot} counts 1 holders" in capsys.readouterr().out
    live_server.engine()._slots.release(slot)


def test_the_signal(tiny_models):
    process = Process("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0")
    try:
        process.wait_ready()
        process.process.send_signal(signal.SIGUSR1)
        told = process.wait_line(re.compile(r"invariants checked: (\d+) problems"))
        assert told[1] == "0"
    finally:
        process.process.terminate()
    assert process.wait() == 0
