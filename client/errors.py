"""Errors of the client.

DeqlmError
├── InvalidArgument       a field is out of bounds; `violations` lists which
├── NotFound              no such session or model; `resource` names it
├── Aborted               another call holds the session
├── FailedPrecondition    a token did not converge and the policy was `error`
├── ResourceExhausted     the queue is full; `retry_after_s` says when to come back
├── DeadlineExceeded      the call took longer than it was given
├── Unavailable           the server is not reachable, loading or going away
├── Cancelled             the call was cancelled
├── Internal              a defect of the server
├── Unauthenticated       the server knows its callers, and this one shows no token that it knows
├── PermissionDenied      the caller's rights do not go so far
└── OutOfRange, AlreadyExists, Unimplemented, DataLoss, Unknown are not part of the
    contract; proxies and other servers send them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

REQUEST_ID_KEY: Final = "x-request-id"
"""Metadata key of the id under which a server's log has a call."""

_DETAILS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """A field of the request that is out of bounds."""

    field: str
    """Its path in the request message."""
    description: str
    """What is wrong, with value and bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """The richer details of a failed call, as far as the server sent them."""

    reason: str = ""
    """Word in capitals from the contract, such as SESSION_BUSY."""
    violations: tuple[FieldViolation, ...] = ()
    """Fields out of bounds."""
    retry_after_s: float | None = None
    """When to try again."""
    resource: str = ""
    """Name of the session or model that is missing."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else the server tells."""
    request_id: str = ""
    """Id under which the server's log has the call."""


class DeqlmError(Exception):
    """A call failed."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, details: ErrorDetails | None = None) -> None:
        """Keep the server's message and details."""
        super().__init__(message)
        self.message = message
        self.details = details if details is not None else ErrorDetails()

    def __str__(self) -> str:
        """The server's message, and the id of the request where that does not tell it."""
        if not self.request_id or self.request_id in self.message:
            return self.message
        return f"{self.message} (request {self.request_id})"

    @property
    def request_id(self) -> str:
        """Id under which the server's log has the call; empty when the server sent none."""
        return self.details.request_id

    @property
    def reason(self) -> str:
        """Word in capitals from the contract; empty when the server sent none."""
        return self.details.reason

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Fields of the request that are out of bounds."""
        return self.details.violations

    @property
    def retry_after_s(self) -> float | None:
        """When to try again; None when the server did not say."""
        return self.details.retry_after_s

    @property
    def resource(self) -> str:
        """Name of the session or model that is missing; empty when the server did not say."""
        return self.details.resource


class InvalidArgument(DeqlmError):
    """A field of the request is out of bounds."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(DeqlmError):
    """There is no such session or model, or the session is another owner's."""

    code = grpc.StatusCode.NOT_FOUND


class Aborted(DeqlmError):
    """Another call holds the session."""

    code = grpc.StatusCode.ABORTED


class FailedPrecondition(DeqlmError):
    """A token did not converge within its budget and the policy was `error`."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(DeqlmError):
    """The server's queue or memory is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(DeqlmError):
    """The call took longer than it was given."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(DeqlmError):
    """The server is not reachable, loading or going away."""

    code = grpc.StatusCode.UNAVAILABLE


class Cancelled(DeqlmError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class Internal(DeqlmError):
    """The server has a defect."""

    code = grpc.StatusCode.INTERNAL


class OutOfRange(DeqlmError):
    """The operation went past a valid range."""

    code = grpc.StatusCode.OUT_OF_RANGE


class AlreadyExists(DeqlmError):
    """What was to be made is there already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(DeqlmError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(DeqlmError):
    """The caller is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Unimplemented(DeqlmError):
    """The server does not know the call."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLoss(DeqlmError):
    """Data is lost or damaged."""

    code = grpc.StatusCode.DATA_LOSS


class Unknown(DeqlmError):
    """The call failed for an unknown reason."""

    code = grpc.StatusCode.UNKNOWN


ERRORS: Final[Mapping[grpc.StatusCode, type[DeqlmError]]] = MappingProxyType(
    {
        error.code: error
        for error in (
            InvalidArgument,
            NotFound,
            Aborted,
            FailedPrecondition,
            ResourceExhausted,
            DeadlineExceeded,
            Unavailable,
            Cancelled,
            Internal,
            OutOfRange,
            AlreadyExists,
            PermissionDenied,
            Unauthenticated,
            Unimplemented,
            DataLoss,
            Unknown,
        )
    }
)
"""Exception of every status but OK."""


class FailedCall(Protocol):
    """What the errors of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode:
        """Status of the call."""

    def details(self) -> str | None:
        """The server's message."""

    def trailing_metadata(self) -> Any:
        """Metadata sent with the status."""


def from_call(call: FailedCall) -> DeqlmError:
    """Make the exception for a failed call, with its details decoded."""
    metadata = tuple(call.trailing_metadata() or ())
    details = _decode_details(metadata)
    sent = next((str(value) for key, value in metadata if key == REQUEST_ID_KEY), "")
    request_id = sent or details.metadata.get("request_id", "")
    if request_id:
        details = replace(details, request_id=request_id)
    return ERRORS.get(call.code(), Unknown)(call.details() or "no message", details=details)


def _decode_details(metadata: Iterable[tuple[str, str | bytes]]) -> ErrorDetails:
    packed = next((value for key, value in metadata if key == _DETAILS_KEY), b"")
    status = status_pb2.Status()
    try:
        status.ParseFromString(packed if isinstance(packed, bytes) else packed.encode("latin-1"))
    except DecodeError:
        # A proxy may have mangled the trailer; the status and message are still good.
        return ErrorDetails()
    return _read_details(status)


def _read_details(status: status_pb2.Status) -> ErrorDetails:
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    resource = error_details_pb2.ResourceInfo()
    retry_after_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif not (detail.Unpack(info) or detail.Unpack(request)):
            detail.Unpack(resource)
    return ErrorDetails(
        reason=info.reason,
        violations=tuple(
            FieldViolation(field=violation.field, description=violation.description)
            for violation in request.field_violations
        ),
        retry_after_s=retry_after_s,
        resource=resource.resource_name,
        metadata=dict(info.metadata),
    )
