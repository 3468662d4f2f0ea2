"""The parser of every command: one line for a usage error, options one below the other."""

import argparse
import math
import re
import textwrap
from typing import Any, NoReturn

EXIT_USAGE = 2
_WIDTH = 80
_INDENT = 8


_REWORDED = (
    (r"argument (\S+): expected (?:at least )?one argument", r"\1 must have a value, got none"),
    (r"argument (\S+): ((?:must|needs) .*)", r"\1 \2"),
    (r"argument (\S+): (.*)", r"\1: \2"),
    (r"the following arguments are required: (.*)", r"\1 must be given"),
    (r"one of the arguments (.*) is required", r"one of \1 must be given"),
    (r"unrecognized arguments: (-[^\s=]*).*", r"unknown option \1"),
    (r"unrecognized arguments: (.*)", r"unexpected argument \1"),
)
"""What argparse says, and what is said instead."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose usage errors are one line: what is wrong, and help."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        """Ends the process with code 2."""
        self.exit(EXIT_USAGE, usage_error(self.prog, _reworded(message)) + "\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of {words}, got {value}")


def usage_error(prog: str, problem: str) -> str:
    """The line for arguments that no command can be made of; the exit code is 2.

    >>> usage_error("deqlm top", "unknown option --tall")
    'deqlm top: unknown option --tall; `deqlm top --help` tells what it takes'
    """
    one_line = " ".join(problem.split())
    between = "" if one_line.endswith("?") else ";"
    return f"{prog}: {one_line}{between} `{prog} --help` tells what it takes"


def _reworded(message: str) -> str:
    one_line = " ".join(message.split())
    for theirs, ours in _REWORDED:
        if found := re.fullmatch(theirs, one_line):
            return found.expand(ours)
    return one_line


class Tall(argparse.HelpFormatter):
    """Help with every flag on a line of its own, its meaning below, at most 80 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_INDENT, width=_WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Names of recipes and flags have hyphens, at which they must not be broken."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


def positive_seconds(text: str) -> float:
    """A duration, as the type of an argument. Raises argparse.ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return seconds


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text}") from None
