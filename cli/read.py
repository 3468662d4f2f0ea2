"""Reads the options of a command: dataclasses are the only source of flags, help and YAML keys.

A flag goes before an environment variable, that before ``--config`` files (a later one before an
earlier), those before ``--recipe``, that before the default. No import of torch or grpc.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from cli.options import Option, make, options_of, summary
from cli.parser import Parser, Tall
from cli.sources import (
    Values,
    closest,
    from_environment,
    from_file,
    from_flags,
    from_recipe,
    missing,
    recipe_names,
    variable,
)
from cli.values import plain, shown

T = TypeVar("T")
_FLAG = re.compile(r"--[A-Za-z][\w.-]*")
_NEGATIVE = re.compile(r"-[\d.]")
_TRUTH = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command takes.

    Attributes:
        prog: its name, for messages.
        description: of the command, for ``--help``.
        groups: option dataclasses by the prefix of their flags; an empty prefix for none.
        headings: of the groups in ``--help``; where there is none, the class's own summary.
        defaults: instances whose values are a group's defaults, in place of the class's own.
        recipes: folder of the files that ``--recipe`` names; None for no such flag.
        environment: prefix of environment variables; empty for none.
        operands: what comes before the flags, for the usage line; the caller takes it off.
    """

    prog: str
    description: str
    groups: Mapping[str, type]
    headings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    recipes: Traversable | None = None
    environment: str = ""
    operands: str = ""

    @cached_property
    def options(self) -> dict[str, Option]:
        """Every option by its key."""
        return {
            option.key: option
            for group, kind in self.groups.items()
            for option in options_of(group, kind, self.defaults.get(group, MISSING))
        }


def read(command: Command, argv: Sequence[str], build: Callable[[dict[str, Any]], T]) -> T:
    """What ``build`` makes of one instance per group.

    Whatever is wrong ends the process with code 2 and one line on standard error, be it found
    here or by a ValueError of an option class or of ``build``. ``--help`` and ``--print-config``
    end it with code 0.
    """
    parser = _parser(command)
    given, rest = parser.parse_known_args(_spelled(argv, command))
    if rest:
        parser.error(_unknown(rest[0], command))
    try:
        values = _values(command, given)
        if given.print_config:
            _print_config(command, values)
            parser.exit()
        problem = missing(values, list(command.options.values()))
        if problem is not None:
            parser.error(problem)
        return build({group: _made(command, group, values) for group in command.groups})
    except ValueError as error:
        parser.error(str(error))


def _values(command: Command, given: argparse.Namespace) -> Values:
    """The values in force; a key is missing where one must be given and none is."""
    options = command.options
    values = {key: o.default for key, o in options.items() if o.default is not MISSING}
    if command.recipes is not None and given.recipe is not None:
        values |= from_recipe(given.recipe, command.recipes, options)
    for name in given.config or _configs(command):
        values |= from_file(Path(name), name, options)
    if command.environment:
        values |= from_environment(command.environment, options.values())
    return values | from_flags(vars(given), options.values())


def _configs(command: Command) -> list[str]:
    name = os.environ.get(f"{command.environment}_CONFIG") if command.environment else None
    return [name] if name else []


def _made(command: Command, group: str, values: Values) -> Any:
    mine = {o.name: values[o.key] for o in command.options.values() if o.group == group}
    return make(group, command.groups[group], mine)


def _print_config(command: Command, values: Values) -> None:
    from cli.yaml_file import dump

    nested: dict[str, Any] = {}
    for option in command.options.values():
        if option.key in values:
            place = nested.setdefault(option.group, {}) if option.group else nested
            place[option.name] = plain(values[option.key])
    sys.stdout.write(dump(nested))


def _parser(command: Command) -> Parser:
    parser = Parser(
        prog=command.prog,
        usage=_usage(command),
        description=command.description,
        formatter_class=Tall,
    )
    if command.recipes is not None:
        names = ", ".join(recipe_names(command.recipes))
        parser.add_argument("--recipe", metavar="NAME", help=f"packaged options: {names}")
    parser.add_argument("--config", action="append", metavar="FILE", help=_config_help(command))
    parser.add_argument(
        "--print-config", action="store_true", help="print what is in force as YAML, and end"
    )
    for group, kind in command.groups.items():
        title = command.headings.get(group) or summary(kind)
        place = parser.add_argument_group(f"{group}: {_lower(title)}") if group else parser
        for option in command.options.values():
            if option.group == group:
                _add(place, option, command)
    return parser


def _usage(command: Command) -> str:
    recipe = "[--recipe NAME] " if command.recipes is not None else ""
    option = "--GROUP.OPTION VALUE" if any(command.groups) else "--OPTION VALUE"
    operands = f"{command.operands} " if command.operands else ""
    return f"{command.prog} {operands}{recipe}[--config FILE] [{option} ...]"


def _config_help(command: Command) -> str:
    named = f"; environment: {command.environment}_CONFIG" if command.environment else ""
    return (
        "YAML file with any of the options, spelled with underscores, groups as nested keys; "
        f"repeatable, a later file goes before an earlier{named}"
    )


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _add(place: argparse._ActionsContainer, option: Option, command: Command) -> None:
    kind = option.kind
    more: dict[str, Any] = {"action": "append"} if kind.several else {}
    if kind.base is bool:
        more = {"nargs": "?", "const": "true"}
    place.add_argument(
        option.flag, dest=option.key, metavar=kind.metavar, help=_help(option, command), **more
    )


def _help(option: Option, command: Command) -> str:
    notes = "required" if option.default is MISSING else f"default: {shown(option.default)}"
    if command.environment:
        notes += f"; environment: {variable(command.environment, option)}"
    return f"{option.meaning} ({notes})".replace("``", "`").replace("%", "%%")


def _spelled(argv: Sequence[str], command: Command) -> list[str]:
    """The arguments with dashes in flags, and with values that look like flags tied to theirs."""
    switches = {o.flag for o in command.options.values() if o.kind.base is bool}
    spelled: list[str] = []
    for argument in argv:
        flag, separator, value = argument.partition("=")
        before = spelled[-1] if spelled else ""
        if _FLAG.fullmatch(flag):
            spelled.append(flag.replace("_", "-") + separator + value)
        elif _NEGATIVE.match(argument) and _FLAG.fullmatch(before) and before not in switches:
            spelled[-1] = f"{before}={argument}"
        else:
            spelled.append(argument)
    return spelled


def _unknown(argument: str, command: Command) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument}"
    flag = argument.partition("=")[0]
    known = [option.flag[2:] for option in command.options.values()]
    return f"unknown option {flag}{closest(flag.lstrip('-'), known, before='--')}"
