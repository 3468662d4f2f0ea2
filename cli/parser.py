"""The parser of every command: two lines for a usage error, options one below the other."""

import argparse
import math
import textwrap
from typing import Any, NoReturn

EXIT_USAGE = 2
_WIDTH = 80
_INDENT = 8


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose usage errors are two lines: what is wrong, and help."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Ends the process with code 2."""
        one_line = " ".join(message.split())
        hint = f"`{self.prog} --help` tells what it takes"
        self.exit(EXIT_USAGE, f"{self.prog}: error: {one_line}\n{hint}\n")


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
