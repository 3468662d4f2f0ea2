"""Flags, ``--help`` and YAML of the commands, made from their option dataclasses.

A flag is shown with dashes and understood with underscores as well; a yes-or-no flag may stand
alone. No import of torch.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

_FLAG = re.compile(r"--[a-z][a-z0-9._-]*")
_WORDS = {"true", "false", "yes", "no"}
_CONFIG_HELP = "YAML file with any of the options, spelled with underscores"


class _Parser(ArgumentParser):
    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        text: str = super().format_help(formatter)
        return _FLAG.sub(lambda found: found[0].replace("_", "-"), text)


def parse(
    argv: Sequence[str], *, prog: str, description: str, groups: Mapping[str, type]
) -> dict[str, Any]:
    """Instances of the option classes.

    Args:
        argv: the arguments.
        prog: name of the command, for messages.
        description: of the command, for ``--help``.
        groups: option dataclasses by the prefix of their flags; an empty prefix for none.

    Returns:
        One instance per group. Usage errors and impossible values end the process with code 2.
    """
    parser = _Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help=_CONFIG_HELP)
    for prefix, kind in groups.items():
        parser.add_class_arguments(kind, prefix or None)
    values = parser.parse_args(_spelled(argv, groups))
    try:
        return {prefix: _make(values, prefix, kind) for prefix, kind in groups.items()}
    except ValueError as error:  # an option's own check, or two that contradict each other
        parser.error(str(error))


def _make(values: Any, prefix: str, kind: Any) -> Any:
    group = values[prefix] if prefix else values
    return kind(**{field.name: group[field.name] for field in dataclasses.fields(kind)})


def _spelled(argv: Sequence[str], groups: Mapping[str, type]) -> list[str]:
    """The arguments as the parser wants them: underscores, and a word after yes-or-no flags."""
    switches = {
        f"--{prefix}.{field.name}" if prefix else f"--{field.name}"
        for prefix, kind in groups.items()
        for field in dataclasses.fields(kind)
        if field.type is bool
    }
    spelled: list[str] = []
    for i, argument in enumerate(argv):
        flag, separator, value = argument.partition("=")
        if not _FLAG.fullmatch(flag):
            spelled.append(argument)
            continue
        flag = "--" + flag[2:].replace("-", "_")
        alone = not separator and (i + 1 == len(argv) or argv[i + 1].lower() not in _WORDS)
        spelled.append(f"{flag}=true" if flag in switches and alone else flag + separator + value)
    return spelled
