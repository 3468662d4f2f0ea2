"""Why a call failed, as the log may say it: without callers' words and without session ids."""

import re

from server.engine import errors as engine_errors
from server.errors import ModelNotFound, NotReady, SlowReader, clip
from server.profiling.errors import ProfilingError
from server.security.errors import PermissionMissing, QuotaExceeded, Unauthenticated

# Whose messages are of the server's own words and numbers. Others name a session, a key or a text.
_TOLD = (
    engine_errors.SessionLimit,
    engine_errors.QueueFull,
    engine_errors.OutOfMemory,
    engine_errors.DeadlineExceeded,
    engine_errors.Cancelled,
    engine_errors.NotConverged,
    engine_errors.EngineStopped,
    NotReady,
    SlowReader,
    PermissionMissing,
    QuotaExceeded,
    ProfilingError,
)
_GOT = ", got "
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?|-?inf|nan")


def why(error: Exception, *, has_messages: bool) -> str:
    """What an error says, in one line; empty where that is nothing that the log may have.

    Args:
        error: of any kind.
        has_messages: whether the log may have users' text.
    """
    if has_messages:
        return clip(str(error))
    if isinstance(error, Unauthenticated):
        return error.kind
    violations = getattr(error, "violations", None)
    if violations is not None:
        return clip("; ".join([_bound(field, message) for field, message in violations]))
    if isinstance(error, engine_errors.InvalidRequest):
        return _bound(error.field, str(error))
    if isinstance(error, ModelNotFound):
        return _bound("model", str(error))
    return clip(str(error)) if isinstance(error, _TOLD) else ""


def _bound(field: str, message: str) -> str:
    """A field and its bound; the value alone may be a caller's words, unless it is a number."""
    bound, got, value = message.partition(_GOT)
    if got and _NUMBER.fullmatch(value):
        return message
    return bound if got else field
