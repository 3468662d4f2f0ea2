"""The spans of the call that is being answered, without OpenTelemetry: most servers have none."""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from server.engine.timeline import Timeline

if TYPE_CHECKING:
    from server.call import Call

Value = str | int | float


class Spans(Protocol):
    """Those of one call."""

    def timeline(self) -> Timeline:
        """For the call's next job, once the job before is over; becomes spans."""

    def stage(self, name: str, **attributes: Value) -> AbstractContextManager[None]:
        """A span for as long as something takes."""

    def end(self, call: "Call") -> None:
        """The call is over."""


class Tracer(Protocol):
    """Makes spans."""

    def begin(self, call: "Call", path: str) -> Spans | None:
        """Begin a call's, and tell it its trace; None where it is not to be recorded."""

    def close(self) -> None:
        """Send what there is, within seconds; blocks."""


CURRENT: ContextVar[Spans | None] = ContextVar("spans", default=None)


def stage(name: str, **attributes: Value) -> AbstractContextManager[None]:
    """A span of the current call, if it has any, for as long as something takes."""
    spans = CURRENT.get()
    return nullcontext() if spans is None else spans.stage(name, **attributes)
