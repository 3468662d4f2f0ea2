"""Flags, ``--help`` and YAML of the training commands, made from their option dataclasses."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from importlib.resources import files
from typing import Any

from cli.options import meanings
from cli.read import Command, read
from training.options.train import TrainOptions

_DESCRIPTION = (
    "Train a model. A flag goes before --config files, those before --recipe, that before the "
    "default. Needed are a text and a folder: --data.train, --data.valid (or --data.prepared) "
    "and --run.out; someone with a text of their own begins with --recipe small-ift-jr."
)


def parse(
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    groups: Mapping[str, type],
    operands: str = "",
) -> dict[str, Any]:
    """Instances of the option classes.

    Args:
        argv: the arguments.
        prog: name of the command, for messages.
        description: of the command, for ``--help``.
        groups: option dataclasses by the prefix of their flags; an empty prefix for none.
        operands: what comes before the flags, for the usage line; the caller takes it off.

    Returns:
        One instance per group. Usage errors and impossible values end the process with code 2.
    """
    command = Command(prog=prog, description=description, groups=groups, operands=operands)
    return read(command, argv, dict)


def train_command(prog: str) -> Command:
    """What ``deqlm train`` takes."""
    fields = {field.name: field for field in dataclasses.fields(TrainOptions)}
    factories = {name: field.default_factory for name, field in fields.items()}
    return Command(
        prog=prog,
        description=_DESCRIPTION,
        groups=TrainOptions.groups(),
        headings=meanings(TrainOptions),
        defaults={name: make() for name, make in factories.items() if make is not MISSING},
        recipes=files("training") / "recipes",
    )


def read_train(argv: Sequence[str], prog: str) -> TrainOptions:
    """Options of a run from ``--recipe``, ``--config`` files and flags; bad ones end with 2."""
    return read(train_command(prog), argv, lambda made: TrainOptions(**made))
