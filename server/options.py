"""The command line, environment and file of ``deqlm serve``, read into a ``ServerConfig``.

A flag goes before an environment variable, that before the file, that before the default.
"""

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from server.config import ServerConfig, ServerConfigError

ENV_PREFIX = "DEQLM"

_DESCRIPTION = (
    "Serve deep-equilibrium language models over gRPC. A flag goes before the environment variable "
    "beside it, that before the file, that before the default."
)
_CONFIG_HELP = "YAML file with any of the options below, spelled with underscores"
_MODEL_HELP = (
    "checkpoint folder to serve and its name in requests; repeatable, the first is the default; "
    "the environment variable takes several with commas between them; "
    "without any, the bundled checkpoint is served"
)
_FLAG = re.compile(r"--[a-z][a-z_-]*")


def parse_config(argv: Sequence[str], prog: str) -> ServerConfig:
    """The configuration that arguments and environment ask for.

    Raises:
        ServerConfigError: a value is impossible, or the file cannot be read.
        SystemExit: usage errors (2) and ``--help`` (0), told by the parser itself.
    """
    arguments = [_underscored(argument) for argument in argv]
    models, file, rest = _split(arguments)
    parser = _make_parser(prog, file)
    if models:
        rest.append(f"--model={json.dumps(models)}")
    return _build(parser.parse_args(rest))


class _Parser(ArgumentParser):
    """Shows flags with dashes, as the other commands do; underscores are understood too."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help text."""
        text: str = super().format_help(formatter)
        return _FLAG.sub(lambda found: found[0].replace("_", "-"), text)


def _underscored(argument: str) -> str:
    """The argument with its flag, if it is one, spelled as the field."""
    flag, separator, value = argument.partition("=")
    if not _FLAG.fullmatch(flag):
        return argument
    return "--" + flag[2:].replace("-", "_") + separator + value


def _split(arguments: list[str]) -> tuple[list[str], Path | None, list[str]]:
    """The values of every ``--model``, the file of ``--config``, and the other arguments.

    The file's name must be known before the parser is made: only as a default does the file stand
    below the environment. And the parser takes a list as one JSON value, not as repeated flags.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model", action="append", default=[])
    first.add_argument("--config", default=os.environ.get(f"{ENV_PREFIX}_CONFIG"))
    try:
        found, rest = first.parse_known_args(arguments)
    except argparse.ArgumentError:  # a flag without value: the real parser tells
        return [], None, arguments
    if found.config is None:
        return found.model, None, rest
    file = Path(found.config)
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServerConfigError(
            f"config must be a readable YAML file, got {found.config!r}: {error}"
        ) from error
    return found.model, file, rest


def _make_parser(prog: str, file: Path | None) -> ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [--model NAME=PATH ...] [OPTION ...]",
        description=_DESCRIPTION,
        default_env=True,
        env_prefix=ENV_PREFIX,
        default_config_files=[] if file is None else [str(file)],
    )
    parser.add_argument("--config", type=str, metavar="FILE", help=_CONFIG_HELP)
    parser.add_argument(
        "--model", type=list[str] | str, default=[], metavar="NAME=PATH", help=_MODEL_HELP
    )
    parser.add_class_arguments(ServerConfig, as_group=False, skip={"model"})
    return parser


def _build(found: Namespace) -> ServerConfig:
    names = {field.name for field in dataclasses.fields(ServerConfig)}
    values = {name: value for name, value in vars(found).items() if name in names}
    model = values.pop("model") or []
    if isinstance(model, str):
        model = model.split(",")
    return ServerConfig(model=tuple(model), **values)
