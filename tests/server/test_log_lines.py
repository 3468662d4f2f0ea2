"""What entries of the log look like, and that nothing in one looks like another."""

import json
import logging
import re
import sys

import pytest
from grpc._cython.cygrpc import ExecuteBatchError

from server.logs import ABOUT, About, Formatter, JsonFormatter, set_up

FORGED = "\n2026-01-01 00:00:00,000 INFO    server: forged"


def record(message, *arguments, error=None, **extra):
    info = None
    if error is not None:
        try:
            raise error
        except Exception:
            info = sys.exc_info()
    made = logging.getLogger("server.x").makeRecord(
        "server.x", logging.INFO, __file__, 1, message, arguments, info, extra=extra
    )
    return made


def told(made, **options):
    return json.loads(JsonFormatter(**options).format(made))


def test_a_line_for_people():
    line = Formatter().format(record("%s ended", "Score", request_id="r1"))
    assert re.fullmatch(r"[-\d]+ [:,\d]+ INFO    server\.x: request r1: Score ended", line)
    assert Formatter().format(record("ready")).endswith("server.x: ready")


def test_a_line_for_machines():
    line = JsonFormatter().format(record("%s ended", "Score", request_id="r1", seconds=0.5))
    assert "\n" not in line
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[:\d]+\.\d{3}\+00:00", entry.pop("time"))
    assert entry == {
        "level": "info",
        "logger": "server.x",
        "message": "Score ended",
        "request_id": "r1",
        "seconds": 0.5,
    }


def test_a_client_that_was_gone_is_no_defect(caplog):
    set_up("info", has_messages=False)
    log = logging.getLogger("grpc._cython.cygrpc")
    for error in (ExecuteBatchError("gone"), RuntimeError("broken")):
        try:
            raise error
        except Exception:
            log.exception("raised in core by a servicer's method")
    assert [type(entry.exc_info[1]) for entry in caplog.records] == [RuntimeError]


def test_what_is_logged_in_a_call_is_about_it():
    token = ABOUT.set(About("r2", "t2"))
    try:
        assert "request r2: lost" in Formatter().format(record("lost"))
        entry = told(record("lost"))
        assert (entry["request_id"], entry["trace_id"]) == ("r2", "t2")
        assert told(record("lost", request_id="r3"))["request_id"] == "r3", "what is said counts"
    finally:
        ABOUT.reset(token)
    assert "request_id" not in told(record("lost"))


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\x00"])
def test_one_entry_is_one_line(control):
    made = record("of %s", f"a{control}b")
    assert len(Formatter().format(made).splitlines()) == 1
    assert control[0] not in Formatter().format(made)
    assert told(made)["message"] == f"of a{control}b"
    assert control[0] not in JsonFormatter().format(made)


def test_no_line_of_a_trace_is_an_entry():
    made = record("failed", error=ValueError("x" + FORGED + "\r\x1b[1A"))
    text = Formatter(has_messages=True).format(made)
    first, *rest = text.splitlines()
    assert first.endswith("failed")
    assert any("forged" in line for line in rest)
    assert all(line.startswith("  ") for line in rest if line)
    assert "\r" not in text
    assert "\x1b" not in text


def test_a_trace_is_a_member_of_the_entry():
    made = record("failed", error=ValueError("zebrafish"))
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "test_log_lines.py" in json.loads(line)["trace"]
    assert "zebrafish" not in line
    assert "zebrafish" in told(made, has_messages=True)["trace"]


def test_an_act_of_an_administrator_is_an_object():
    entry = told(record('{"who": "root"}', audit={"who": "root", "request_id": "r1"}))
    assert entry["audit"] == {"who": "root", "request_id": "r1"}
    assert "root" not in entry["message"]
