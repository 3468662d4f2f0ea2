"""What the server's log looks like, and what does not get into it."""

import logging
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# What the system, torch and the server itself say holds no text of users; what others say may.
_HARMLESS = (OSError, MemoryError)
_HIDDEN = "(what it says is not logged, as it may hold users' text; --log-messages logs it)"

AUDIT = logging.getLogger("server.audit")
"""Gets one line for each act of an administrator, whatever the log's level."""

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

    def formatException(self, ei: _Info) -> str:
        """A trace, and those of what it came from."""
        if self._has_messages or ei[1] is None:
            return super().formatException(ei)
        return "".join(_trace(ei[1], set())).rstrip("\n")


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


def set_up(level: str, *, has_messages: bool) -> None:
    """Log to standard error.

    Args:
        level: the least severe messages to log.
        has_messages: whether what exceptions say is logged in any case.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(has_messages=has_messages))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    AUDIT.setLevel(logging.INFO)
