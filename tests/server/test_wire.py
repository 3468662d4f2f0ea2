"""Bytes that are no message."""

import logging

import pytest

from tests.server.calls import TIMEOUT_S, fails

TEXT = b"what-somebody-has-written"


def told(call):
    failure = fails(call)
    return failure.code, failure.reason, failure.fields, failure.message


@pytest.mark.parametrize(
    "data", [b"\xff" + TEXT, b"\x0a\x7f" + TEXT], ids=["no field", "too short"]
)
def test_they_are_refused_like_any_bad_field(live_server, data, caplog):
    caplog.set_level(logging.DEBUG)
    problem = f"request must be a message of the method's type, got {len(data)} other bytes"
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", ("request",), problem)
    channel = live_server.channel
    one = channel.unary_unary("/deqlm.v1.ScoringService/Score")
    assert told(lambda: one(data, timeout=TIMEOUT_S)) == expected
    answers = channel.unary_stream("/deqlm.v1.GenerationService/Generate")
    assert told(lambda: list(answers(data, timeout=TIMEOUT_S))) == expected
    stream = channel.stream_stream("/deqlm.v1.ScoringService/ScoreStream")
    assert told(lambda: list(stream(iter([data]), timeout=TIMEOUT_S))) == expected
    assert TEXT.decode() not in caplog.text
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
