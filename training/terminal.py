"""Where a command shows how it goes: a terminal that can be painted over, or a file of lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.text import Text

_LOG = logging.getLogger(__name__)


def open_console(stream: TextIO | None) -> Console:
    """Of a stream, standard error if None."""
    return Console(file=stream or sys.stderr, highlight=False, soft_wrap=False)


def can_repaint(console: Console) -> bool:
    """Whether lines can be painted over. Asks the stream: FORCE_COLOR makes rich say yes."""
    return console.file.isatty() and not console.is_dumb_terminal


def write_line(console: Console, text: str) -> None:
    """A line of plain text; a reader that has gone ends the lines, not the run."""
    try:
        console.file.write(text + "\n")
        console.file.flush()
    except (OSError, UnicodeEncodeError):
        _LOG.debug("a line of progress could not be shown", exc_info=True)


@contextmanager
def logging_through(console: Console) -> Iterator[None]:
    """Log messages for the same stream go above what is painted, not into it."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is console.file
    ]
    through = _Above(console)
    before = [handler.setStream(through) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream or console.file)


class _Above:
    """A stream whose whole lines are printed above a live display."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        if text.rstrip("\n"):
            self._console.print(Text(text.rstrip("\n")), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""
