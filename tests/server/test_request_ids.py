"""One id from the client's call to its answer, its error, the log and the audit log."""

import json
import logging
import re

import grpc
import pytest

from client.context import request_id
from client.errors import InvalidArgument
from client.sync import Client
from deqlm.v1 import admin_pb2, common_pb2, generation_pb2, session_pb2
from server import request_ids
from server.logs import JsonFormatter
from tests.server.calls import ENDLESS, TIMEOUT_S, Stubs, fails, failure, to_input
from tests.server.hostile.raw import Raw, data_frames, message
from tests.server.security.people import people, stubs_of, write
from tests.server.test_process import Process

MADE = re.compile(r"[0-9a-f]{32}")
CORE = re.compile(r"[EWI]\d{4} |WARNING: All log messages before absl")
GIVEN = "order-17:a/b=.~@+"


def sent_back(call):
    return dict(call.trailing_metadata()).get("x-request-id")


@pytest.mark.parametrize("value", ["a", "A-1", GIVEN, "x" * 128])
def test_what_is_fit_is_taken(value):
    assert request_ids.read_metadata([("x-request-id", value)]) == value


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("x-request-id", "")],
        [("x-request-id", "x" * 129)],
        [("x-request-id", "a b")],
        [("x-request-id", "a\nb")],
        [("x-request-id", "a\n")],
        [("x-request-id", "\x1b[2J")],
        [("x-request-id", "é")],
        [("x-request-id", b"a")],
        [("x-request-id", "a"), ("x-request-id", "b")],
    ],
)
def test_what_is_not_is_made(metadata):
    assert MADE.fullmatch(request_ids.read_metadata(metadata))


@pytest.fixture
def ours(live_server):
    """Stubs whose calls have an id of their own."""
    stubs = Stubs(live_server.channel, owner="ann")
    stubs.metadata += (("x-request-id", GIVEN),)
    return stubs


def test_it_comes_back_with_every_kind_of_call(ours):
    options = {"timeout": TIMEOUT_S, "metadata": ours.metadata}
    _, call = ours.sessions.ListSessions.with_call(session_pb2.ListSessionsRequest(), **options)
    assert sent_back(call) == GIVEN
    stream = ours.stream(["It"])
    list(stream)
    assert sent_back(stream) == GIVEN
    stop = generation_pb2.StopOptions(max_tokens=2)
    texts = ours.generate(generation_pb2.GenerateRequest(prompt=to_input("It"), stop=stop))
    list(texts)
    assert sent_back(texts) == GIVEN


def test_one_is_made_where_none_is_given(stubs):
    answer = stubs.begin_score("It")
    answer.result()
    assert MADE.fullmatch(sent_back(answer))


def test_it_comes_back_with_an_error(ours):
    with pytest.raises(grpc.RpcError) as caught:
        ours.score("It", solver=common_pb2.SolverOptions(tol=5.0))
    assert sent_back(caught.value) == GIVEN
    assert failure(caught.value).metadata["request_id"] == GIVEN


def test_two_calls_of_one_id_are_two(make_server):
    server = make_server()
    stubs = Stubs(server.channel)
    stubs.metadata = (("x-request-id", "same"),)
    first, second = (stubs.begin_score("It was dark. " * 200, solver=ENDLESS) for _ in range(2))
    while server.engine().snapshot().running_jobs < 2:
        assert not (first.done() or second.done())
    first.cancel()
    while server.engine().snapshot().running_jobs > 1:
        assert not second.done()
    assert not second.done(), "it runs on, though the other was cancelled"
    second.cancel()


def entries(caplog):
    """What the server has logged, as machines read it."""
    records = [record for record in caplog.records if record.name.startswith("server.")]
    return [json.loads(JsonFormatter().format(record)) for record in records]


def test_the_log_says_why(make_server, caplog):
    server = make_server(max_sessions=1)
    stubs = Stubs(server.channel)
    with caplog.at_level(logging.DEBUG, "server.guard"):
        stubs.score("It")
        told = fails(lambda: stubs.score("It", solver=common_pb2.SolverOptions(tol=5.0)))
        fails(lambda: stubs.score("It", model="zebrafish"))
        stubs.create()
        full = fails(stubs.create)
        fails(lambda: stubs.get("zebrafish"))
        server.run(server.server._guard.wait_idle(10))
    done, bad, no_model, created, refused, missing = entries(caplog)
    assert (done["message"], done["code"], done["model"]) == ("Score ended with OK", "OK", "pieces")
    assert 0 < done["seconds"] < TIMEOUT_S
    assert created["level"] == "debug"
    assert bad["request_id"] == told.metadata["request_id"]
    assert bad["reason"] == "INVALID_REQUEST"
    assert bad["message"] == (
        "Score ended with INVALID_ARGUMENT: INVALID_REQUEST (solver.tol must be in (0, 1), got 5.0)"
    )
    assert "MODEL_NOT_FOUND (model must be one of pieces, words)" in no_model["message"]
    assert refused["reason"] == "SESSION_LIMIT"
    assert full.message in refused["message"]
    assert missing["message"] == "GetSession ended with NOT_FOUND: SESSION_NOT_FOUND"
    assert "zebrafish" not in caplog.text


def test_with_log_messages_the_log_has_all_of_it(make_server, caplog):
    server = make_server(log_messages=True)
    with caplog.at_level(logging.INFO, "server.guard"):
        fails(lambda: Stubs(server.channel).score("It", model="zebrafish"))
    assert "got 'zebrafish'" in caplog.text


def test_the_audit_log_has_it(make_server, tmp_path, caplog):
    file = tmp_path / "audit.log"
    path = write(tmp_path / "auth.yaml", people())
    server = make_server(auth_file=path, audit_log=file)
    stubs = stubs_of(server.channel, "root")
    metadata = (*stubs.metadata, ("x-request-id", GIVEN))
    stubs.admin.CheckInvariants(
        admin_pb2.CheckInvariantsRequest(), timeout=TIMEOUT_S, metadata=metadata
    )
    server.run(server.server._guard.wait_idle(10))
    assert json.loads(file.read_text())["request_id"] == GIVEN
    # Of one who is turned away before his message is read, too.
    with caplog.at_level(logging.INFO, "server.guard"), pytest.raises(grpc.RpcError) as caught:
        stubs.admin.CheckInvariants(
            admin_pb2.CheckInvariantsRequest(), metadata=(("x-request-id", "who"),)
        )
    assert sent_back(caught.value) == "who"
    (entry,) = entries(caplog)
    assert (entry["request_id"], entry["reason"]) == ("who", "UNAUTHENTICATED")
    assert "(missing)" in entry["message"]


def test_what_the_engine_logs_has_it(make_server, caplog, monkeypatch):
    server = make_server()
    runner = server.engine()._runner

    def broken(work):
        raise ValueError("broken")

    monkeypatch.setattr(runner, "_begin", broken)
    with caplog.at_level(logging.ERROR):
        told = fails(lambda: Stubs(server.channel).score("It"))
    by_engine = [e for e in entries(caplog) if e["logger"].startswith("server.engine")]
    assert [e["request_id"] for e in by_engine] == [told.metadata["request_id"]]


def test_the_client_gives_it_and_shows_it(live_server):
    with Client(live_server.address, owner="ann") as client:
        with request_id("order-18"), pytest.raises(InvalidArgument) as caught:
            client.score("It", top_k=10**6)
        assert caught.value.request_id == "order-18"
        assert str(caught.value) == f"{caught.value.message} (request order-18)"
        with pytest.raises(InvalidArgument) as caught:
            client.score("It", top_k=10**6)
        assert MADE.fullmatch(caught.value.request_id), "outside there is no such id"
    with (
        pytest.raises(InvalidArgument, match=r"request_id must be .*, got 'a b'"),
        request_id("a b"),
    ):
        pass


SCORE_IT = message(b"\x0a\x04\x0a\x02It")


def test_hostile_ids_forge_no_line(tiny_models):
    """As bytes on the wire: no client of gRPC would send them."""
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
        *("--log-level", "debug", "--log-format", "json"),
    )
    try:
        line = json.loads(next(iter(wait_for(process, '"ready after'))))
        address = re.search(r"at (\S+), metrics", line["message"])[1]
        for value in ("a\nforged", "a\r\nx: forged", "\x1b[2Jforged", "forged " * 1000, "é", "ok"):
            with Raw(address) as raw:
                frames = data_frames(1, SCORE_IT)
                raw.send(raw.headers(1, x_request_id=value), *frames)
                raw.status(1)
        with grpc.insecure_channel(address) as channel:  # and it still answers
            assert Stubs(channel).score("the of").model == "tiny"
    finally:
        process.process.terminate()
    assert process.wait() == 0
    # The core of gRPC may complain of what it has got, in lines of its own.
    found = [json.loads(line) for line in process.lines if not CORE.match(line)]
    assert "forged" not in "".join(process.lines)
    ids = [entry["request_id"] for entry in found if entry.get("method") == "Score"]
    assert "ok" in ids
    assert all(MADE.fullmatch(value) or value == "ok" for value in ids)


def wait_for(process, text):
    process.wait_line(re.compile(text))
    return [line for line in process.lines if text in line]
