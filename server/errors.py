"""Errors of the edge, and the one table that gives every error its gRPC status.

EdgeError
├── InvalidFields     fields of a request are out of bounds: all of them, by name
├── UnknownText       every word of a text is outside the vocabulary
├── ModelNotFound     no model of that name
├── NotReady          models are still being loaded
├── StoreUnavailable  a session is in the store, which does not answer
├── KeyReused         an idempotency key belongs to another request
├── SlowReader        the client does not read what it is sent
└── AnswerNotKept     a call with that key was done, its answer is not there
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from deq_model.tokenizers import errors as tokenizer_errors
from server.engine import errors as engine_errors
from server.profiling import errors as profiling_errors
from server.security import errors as security_errors

DOMAIN = "deqlm"
RETRY_BUSY_S = 0.2
"""When a busy session may be free again: most calls are short."""
RETRY_UNAVAILABLE_S = 1.0
"""When to look again for a server that is loading or going away."""

# A status travels in HTTP/2 trailers, of which clients take 8 KiB: the message once with a byte in
# three characters at worst, and all of it once more in base 64. Lengths are in bytes of UTF-8.
_MOST_VIOLATIONS = 8
_LONGEST_DETAIL = 200
_LONGEST_MESSAGE = 900

Violation = tuple[str, str]
"""A field's path in the request, and what is wrong: field, bound and value."""


def clip(text: str, longest: int = _LONGEST_DETAIL) -> str:
    """The text, its middle left out if it is long: values in it may be of any length."""
    data = text.encode("utf-8", errors="replace")
    if len(data) <= longest:
        return text
    begin, end = data[: longest // 2], data[-longest // 2 :]
    return f"{begin.decode('utf-8', 'ignore')} … {end.decode('utf-8', 'ignore')}"


class EdgeError(Exception):
    """Base of what the edge itself tells a caller."""


class InvalidFields(EdgeError):
    """Fields of a request are out of bounds.

    Attributes:
        violations: at least one; those that are told.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        shown = tuple(violations[:_MOST_VIOLATIONS])
        rest = len(violations) - len(shown)
        messages = [clip(message) for _, message in shown]
        super().__init__("; ".join([*messages, f"and {rest} more"] if rest else messages))
        self.violations = shown


class UnknownText(EdgeError):
    """Every word of a text is outside the vocabulary, so that its score would mean nothing."""

    def __init__(self, field: str, words: int) -> None:
        super().__init__(
            f"{field} must hold a word of the model's vocabulary, got {words} unknown ones alone"
        )
        self.violations: tuple[Violation, ...] = ((field, str(self)),)


class ModelNotFound(EdgeError):
    """No model of that name is served."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"model must be one of {', '.join(known)}, got {name!r}")
        self.name = name


class NotReady(EdgeError):
    """Models are still being loaded."""

    def __init__(self) -> None:
        super().__init__("the server is still loading its models")


class StoreUnavailable(EdgeError):
    """A session is in the session store, which does not answer now."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session_id {session_id!r} is in the session store, which is down")
        self.session_id = session_id


class KeyReused(EdgeError):
    """The idempotency key belongs to another request on this session."""

    field = "idempotency_key"

    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency_key must be a new one for a new request, got {key!r} again")


class AnswerNotKept(EdgeError):
    """A call with this idempotency key was done, and its answer was too long to be kept."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the call with idempotency_key {key!r} was done, its answer was too long to be kept"
        )


class SlowReader(EdgeError):
    """A client has not read a message of its stream for too long."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"a response must be read within {timeout_s:g} s, and none was")


Details = Callable[[Any], list[Any]]
"""Makes messages of google.rpc from an error."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The status of one class of errors.

    Attributes:
        error: the class.
        code: its status.
        reason: word of the contract, for ErrorInfo.
        details: more messages.
    """

    error: type[Exception]
    code: grpc.StatusCode
    reason: str
    details: Details = lambda error: []


def _bad_request(error: Any) -> list[Any]:
    violations = getattr(error, "violations", None) or ((error.field, str(error)),)
    return [
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=field, description=clip(message))
                for field, message in violations
            ]
        )
    ]


def _missing_session(error: engine_errors.SessionNotFound) -> list[Any]:
    return [_resource("session", error.session_id, str(error))]


def _missing_model(error: ModelNotFound) -> list[Any]:
    return [_resource("model", error.name, str(error))]


def _resource(kind: str, name: str, message: str) -> Any:
    return error_details_pb2.ResourceInfo(
        resource_type=f"deqlm.v1.{kind}", resource_name=clip(name), description=clip(message)
    )


def _busy_session(error: engine_errors.SessionBusy) -> list[Any]:
    resource = _resource("session", error.session_id, str(error))
    return [_retry_info(RETRY_BUSY_S), resource]


def _retry_later(error: Exception) -> list[Any]:
    return [_retry_info(getattr(error, "retry_after_s", RETRY_UNAVAILABLE_S))]


def _retry_info(seconds: float) -> Any:
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


_Code = grpc.StatusCode

# Most specific first: the first rule whose class fits decides.
RULES: tuple[Rule, ...] = (
    Rule(InvalidFields, _Code.INVALID_ARGUMENT, "INVALID_REQUEST", _bad_request),
    Rule(UnknownText, _Code.INVALID_ARGUMENT, "UNKNOWN_TEXT", _bad_request),
    Rule(ModelNotFound, _Code.NOT_FOUND, "MODEL_NOT_FOUND", _missing_model),
    Rule(NotReady, _Code.UNAVAILABLE, "NOT_READY", _retry_later),
    Rule(StoreUnavailable, _Code.UNAVAILABLE, "STORE_UNAVAILABLE", _retry_later),
    Rule(KeyReused, _Code.INVALID_ARGUMENT, "KEY_REUSED", _bad_request),
    Rule(AnswerNotKept, _Code.FAILED_PRECONDITION, "ANSWER_NOT_KEPT"),
    Rule(security_errors.Unauthenticated, _Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
    Rule(security_errors.PermissionMissing, _Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    Rule(security_errors.QuotaExceeded, _Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", _retry_later),
    Rule(profiling_errors.ProfilesOff, _Code.FAILED_PRECONDITION, "PROFILES_OFF"),
    Rule(profiling_errors.ProfileRunning, _Code.ABORTED, "PROFILE_RUNNING", _retry_later),
    Rule(profiling_errors.ProfileFailed, _Code.FAILED_PRECONDITION, "PROFILE_FAILED"),
    Rule(engine_errors.InvalidRequest, _Code.INVALID_ARGUMENT, "INVALID_REQUEST", _bad_request),
    Rule(engine_errors.SessionNotFound, _Code.NOT_FOUND, "SESSION_NOT_FOUND", _missing_session),
    Rule(engine_errors.SessionBusy, _Code.ABORTED, "SESSION_BUSY", _busy_session),
    Rule(engine_errors.SessionLimit, _Code.RESOURCE_EXHAUSTED, "SESSION_LIMIT", _retry_later),
    Rule(engine_errors.TooLate, _Code.RESOURCE_EXHAUSTED, "DEADLINE_TOO_SOON", _retry_later),
    Rule(engine_errors.OutOfMemory, _Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _retry_later),
    Rule(SlowReader, _Code.RESOURCE_EXHAUSTED, "SLOW_READER"),
    Rule(engine_errors.QueueFull, _Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", _retry_later),
    Rule(engine_errors.DeadlineExceeded, _Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    Rule(engine_errors.Cancelled, _Code.CANCELLED, "CANCELLED"),
    Rule(engine_errors.NotConverged, _Code.FAILED_PRECONDITION, "UNCONVERGED"),
    Rule(engine_errors.EngineStopped, _Code.UNAVAILABLE, "SHUTTING_DOWN", _retry_later),
    Rule(engine_errors.EngineFailed, _Code.INTERNAL, "INTERNAL"),
    Rule(tokenizer_errors.TokenizerFileError, _Code.INTERNAL, "INTERNAL"),
    Rule(tokenizer_errors.TokenizerTrainingError, _Code.INTERNAL, "INTERNAL"),
    Rule(tokenizer_errors.InvalidTextError, _Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    Rule(tokenizer_errors.InvalidTokenIdError, _Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    Rule(tokenizer_errors.UnknownWordError, _Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
)
REFUSALS = frozenset({_Code.RESOURCE_EXHAUSTED, _Code.UNAVAILABLE})
"""Statuses of calls for which there is no room, or that nobody takes."""
INTERNAL = Rule(Exception, _Code.INTERNAL, "INTERNAL")
"""Of everything else: a defect."""


def rule_for(error: Exception) -> Rule:
    """The rule of an error; ``INTERNAL`` where the table has none."""
    return next((rule for rule in RULES if isinstance(error, rule.error)), INTERNAL)


def to_status(error: Exception, *, request_id: str) -> status_pb2.Status:
    """The status to end a call with; a defect tells no more than where the log has it."""
    rule = rule_for(error)
    is_defect = rule.code is _Code.INTERNAL
    message = (
        f"internal error, logged as request {request_id}"
        if is_defect
        else clip(str(error), _LONGEST_MESSAGE)
    )
    info = error_details_pb2.ErrorInfo(
        reason=rule.reason, domain=DOMAIN, metadata={"request_id": request_id}
    )
    status = status_pb2.Status(code=rule.code.value[0], message=message)
    for detail in [info, *rule.details(error)]:
        packed = PackedAny()
        packed.Pack(detail)
        status.details.append(packed)
    return status
