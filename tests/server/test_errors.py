"""Every error has its status."""

import grpc
import pytest
from google.rpc import error_details_pb2

from deq_model.tokenizers.errors import TokenizerError
from server.engine import errors as engine_errors
from server.engine.errors import EngineError
from server.errors import (
    INTERNAL,
    RULES,
    EdgeError,
    InvalidFields,
    ModelNotFound,
    NotReady,
    UnknownText,
    rule_for,
    to_status,
)
from server.profiling.errors import ProfilingError
from server.security.errors import SecurityError

ROOTS = (EngineError, EdgeError, TokenizerError, SecurityError, ProfilingError)
REASONS = {
    "INVALID_REQUEST",
    "UNKNOWN_TEXT",
    "SESSION_NOT_FOUND",
    "MODEL_NOT_FOUND",
    "SESSION_BUSY",
    "UNCONVERGED",
    "QUEUE_FULL",
    "DEADLINE_TOO_SOON",
    "OUT_OF_MEMORY",
    "SLOW_READER",
    "SESSION_LIMIT",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "NOT_READY",
    "STORE_UNAVAILABLE",
    "KEY_REUSED",
    "ANSWER_NOT_KEPT",
    "SHUTTING_DOWN",
    "UNAUTHENTICATED",
    "PROFILES_OFF",
    "PROFILE_RUNNING",
    "PROFILE_FAILED",
    "PERMISSION_DENIED",
    "QUOTA_EXCEEDED",
    "INTERNAL",
}


def below(root):
    for child in root.__subclasses__():
        yield child
        yield from below(child)


@pytest.mark.parametrize(
    "error", [e for root in ROOTS for e in below(root)], ids=lambda e: e.__name__
)
def test_the_table_has_every_error(error):
    rules = [rule for rule in RULES if issubclass(error, rule.error)]
    assert rules, f"{error.__name__} would be told as a defect"
    assert rules[0].error is error, f"{error.__name__} is hidden behind {rules[0].error.__name__}"


def test_the_reasons_are_those_of_the_contract():
    assert {rule.reason for rule in RULES} == REASONS


EXAMPLES = [
    (InvalidFields([("a", "a must"), ("b", "b must")]), "INVALID_ARGUMENT", "INVALID_REQUEST"),
    (UnknownText("input.text", 3), "INVALID_ARGUMENT", "UNKNOWN_TEXT"),
    (ModelNotFound("x", ["a"]), "NOT_FOUND", "MODEL_NOT_FOUND"),
    (NotReady(), "UNAVAILABLE", "NOT_READY"),
    (engine_errors.InvalidRequest("f", "f must"), "INVALID_ARGUMENT", "INVALID_REQUEST"),
    (engine_errors.SessionNotFound("s"), "NOT_FOUND", "SESSION_NOT_FOUND"),
    (engine_errors.SessionBusy("s"), "ABORTED", "SESSION_BUSY"),
    (engine_errors.SessionLimit("full"), "RESOURCE_EXHAUSTED", "SESSION_LIMIT"),
    (engine_errors.QueueFull("full", retry_after_s=2.5), "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    (engine_errors.NotConverged("token 3"), "FAILED_PRECONDITION", "UNCONVERGED"),
    (engine_errors.EngineStopped("stops"), "UNAVAILABLE", "SHUTTING_DOWN"),
]


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES, ids=lambda v: type(v).__name__)
def test_status_message_and_reason(error, code, reason):
    status = to_status(error, request_id="r1")
    assert status.code == grpc.StatusCode[code].value[0]
    assert status.message == str(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (reason, "deqlm", "r1")


def detail(status, kind):
    message = kind()
    assert any(packed.Unpack(message) for packed in status.details)
    return message


def test_details_name_what_the_caller_needs():
    bad = detail(to_status(EXAMPLES[0][0], request_id=""), error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("a", "a must"),
        ("b", "b must"),
    ]
    resource = detail(
        to_status(ModelNotFound("x", ["a"]), request_id=""), error_details_pb2.ResourceInfo
    )
    assert (resource.resource_type, resource.resource_name) == ("deqlm.v1.model", "x")
    full = engine_errors.QueueFull("full", retry_after_s=2.5)
    retry = detail(to_status(full, request_id=""), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5
    busy = to_status(engine_errors.SessionBusy("s"), request_id="")
    assert detail(busy, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
    assert detail(busy, error_details_pb2.ResourceInfo).resource_name == "s"


@pytest.mark.parametrize("error", [RuntimeError("secret"), engine_errors.EngineFailed("secret")])
def test_a_defect_tells_nothing_but_the_request_id(error):
    assert rule_for(error).code is INTERNAL.code
    status = to_status(error, request_id="r1")
    assert status.message == "internal error, logged as request r1"
    assert "secret" not in str(status)
