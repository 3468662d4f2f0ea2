"""What the server's log looks like, and what does not get into it."""

import datetime
import json
import logging
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from server.telemetry_options import LogFormat

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

FIELDS = (
    "request_id", "trace_id", "method", "model", "principal", "code", "reason", "seconds", "audit",
)  # fmt: skip
"""What an entry may have beside its message: names of ``extra``, and of members in JSON."""

# Of a line, and of a screen: what ends the one or moves about the other.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_TRACE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

# What the system, torch and the server itself say holds no text of users; what others say may.
_HARMLESS = (OSError, MemoryError)
_HIDDEN = "(what it says is not logged, as it may hold users' text; --log-messages logs it)"

AUDIT = logging.getLogger("server.audit")
"""Gets one line for each act of an administrator, whatever the log's level."""


@dataclass(frozen=True, slots=True)
class About:
    """The call that whatever is logged in its task is about."""

    request_id: str
    trace_id: str = ""


ABOUT: ContextVar[About | None] = ContextVar("about", default=None)

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Writes traces without what exceptions say, unless that is known to be harmless."""

    def __init__(self, *, has_messages: bool = False) -> None:
        """Take the server's format.

        Args:
            has_messages: whether what exceptions say is written in any case.
        """
        super().__init__(_FORMAT)
        self._has_messages = has_messages

    def format(self, record: logging.LogRecord) -> str:
        """A whole entry; what another formatter made of its trace is not taken over."""
        theirs, record.exc_text = record.exc_text, None
        try:
            return super().format(record)
        finally:
            record.exc_text = theirs

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The entry's line: one, whatever is in it, with the id of the call that it is about."""
        fields = fields_of(record)
        request_id = fields.get("request_id")
        if request_id and "audit" not in fields:  # which tells it itself
            record.message = f"request {request_id}: {record.message}"
        return _escaped(super().formatMessage(record), _CONTROL)

    def formatException(self, ei: _Info) -> str:
        """A trace, and those of what it came from; indented, so that nothing in it is an entry."""
        return textwrap.indent(_escaped(self.trace(ei), _CONTROL_IN_TRACE), "  ")

    def trace(self, ei: _Info) -> str:
        """A trace as it is."""
        if self._has_messages or ei[1] is None:
            return super().formatException(ei)
        return "".join(_trace(ei[1], set())).rstrip("\n")


class JsonFormatter(Formatter):
    """Writes an entry as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """A whole entry, its trace included."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if "audit" in entry:  # the message is the same once more
            entry["message"] = "an act of an administrator"
        if record.exc_info:
            entry["trace"] = self.trace(record.exc_info)
        return json.dumps(entry, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What an entry has beside its message, by name; empty values are left out."""
    about = ABOUT.get() or About("")
    told = {"request_id": about.request_id, "trace_id": about.trace_id}
    told |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
    return {name: value for name, value in told.items() if value != ""}


def _escaped(text: str, control: re.Pattern[str]) -> str:
    return control.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _trace(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _trace(before, seen)
        yield "\nwhich led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    said = str(error) if _is_harmless(error) else _HIDDEN
    yield f"{kind.__module__}.{kind.__qualname__}: {said}\n"


def _is_harmless(error: BaseException) -> bool:
    is_torchs = type(error) is RuntimeError or type(error).__module__.partition(".")[0] == "torch"
    return is_torchs or isinstance(error, _HARMLESS)


def set_up(level: str, form: LogFormat = "human", *, has_messages: bool) -> None:
    """Log to standard error.

    Args:
        level: the least severe messages to log.
        form: what an entry looks like.
        has_messages: whether what exceptions say is logged in any case.
    """
    handler = logging.StreamHandler(sys.stderr)
    kind = JsonFormatter if form == "json" else Formatter
    handler.setFormatter(kind(has_messages=has_messages))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    AUDIT.setLevel(logging.INFO)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a client was gone when it was to be told how its call ended: the guard logs that."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__name__ != "ExecuteBatchError"
