"""Flags, ``--help`` and YAML of the training commands, made from their option dataclasses."""

from collections.abc import Mapping, Sequence
from typing import Any

from cli.read import Command, read


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
    return read(Command(prog=prog, description=description, groups=groups), argv, dict)
