"""Writes the tables of options in docs/*.md from the option classes; ``--check`` only compares.

A table stands between ``<!-- options: NAME -->`` and ``<!-- /options -->``. NAME is a group of
``deqlm train`` (``train.data``), or ``eval``, ``compare``, ``prepare``, ``calibrate``.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

from cli.options import Option, options_of
from cli.values import shown
from training.flags import train_command
from training.options.calibration import CalibrateRun
from training.options.comparison import CompareRun
from training.options.evaluation import EvalRun
from training.options.prepare import PrepareOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"
_TABLE = re.compile(r"(<!-- options: ([\w.]+) -->\n).*?(<!-- /options -->)", re.DOTALL)
_CLASSES = {
    "calibrate": CalibrateRun,
    "compare": CompareRun,
    "eval": EvalRun,
    "prepare": PrepareOptions,
}


def updated(text: str) -> str:
    """The text with every table as it should be. Raises KeyError for a name that is unknown."""
    return _TABLE.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def table(name: str) -> str:
    """The table of a name: flag, default, meaning."""
    rows = [f"| `{o.flag}` | {_default(o)} | {_meaning(o)} |\n" for o in _options(name)]
    return "".join(["| flag | default | meaning |\n", "|---|---|---|\n", *rows])


def _options(name: str) -> Iterator[Option]:
    if name in _CLASSES:
        yield from options_of("", _CLASSES[name])
        return
    command = train_command("deqlm train")
    group = name.removeprefix("train.")
    command.groups[group]  # an unknown one would give an empty table
    yield from (option for option in command.options.values() if option.group == group)


def _default(option: Option) -> str:
    return "required" if option.default is MISSING else shown(option.default)


def _meaning(option: Option) -> str:
    return option.meaning.replace("``", "`").replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Updates the pages, or with ``--check`` tells which ones are behind; the exit code."""
    behind = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if updated(text) != text:
            behind.append(page)
    for page in behind:
        sys.stdout.write(f"{page.name}\n")
        if "--check" not in arguments:
            page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if behind and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
