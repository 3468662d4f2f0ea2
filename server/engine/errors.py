"""Errors of the engine; the edge maps each to a status.

EngineError
├── InvalidRequest      a field has an impossible value          (field, value and bound)
├── SessionNotFound     unknown, deleted, expired or foreign
├── SessionBusy         another call is running on it
├── SessionLimit        no room for one more session
├── QueueFull           too much work is waiting
│   └── TooLate         it would wait beyond its deadline
├── OutOfMemory         there was no memory for it
├── DeadlineExceeded    the caller's deadline passed
├── Cancelled           the caller went away
├── NotConverged        a token spent its budget and the request said that is an error
├── EngineStopped       the engine is not running
└── EngineFailed        a bug or a broken device; details are in the log only
"""


class EngineError(Exception):
    """Base of everything the engine tells a caller."""


class InvalidRequest(EngineError):
    """A field of a request has an impossible value.

    Attributes:
        field: the field's name in the contract.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class SessionNotFound(EngineError):
    """No such session: unknown, deleted, expired, or somebody else's."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session_id {session_id!r} is unknown, deleted or expired")
        self.session_id = session_id


class SessionBusy(EngineError):
    """Another call is running on the session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session_id {session_id!r} is busy with another call")
        self.session_id = session_id


class SessionLimit(EngineError):
    """The table of sessions is full."""

    retry_after_s = 10.0
    """When to look again: nobody knows when one expires or is deleted."""


class QueueFull(EngineError):
    """More work is waiting than the queue may hold.

    Attributes:
        retry_after_s: when trying again makes sense, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLate(QueueFull):
    """With what waits before it, a job would not be done by its deadline."""


class OutOfMemory(EngineError):
    """There was no memory for what a call needs.

    Attributes:
        retry_after_s: when others may be done that memory was short with, in seconds.
    """

    def __init__(
        self,
        message: str = "there was no memory for this; try again when others are done",
        *,
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(EngineError):
    """The deadline of the call passed before it was done."""


class Cancelled(EngineError):
    """The caller cancelled, or is gone."""


class NotConverged(EngineError):
    """A token was not solved within its budget, and the policy is to fail."""


class EngineStopped(EngineError):
    """The engine takes no work: it has not started, or is stopping."""


class EngineFailed(EngineError):
    """Something broke inside; the log has the details."""
