"""Where options come from: recipes, YAML files, environment variables, flags."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cli.options import Option
from cli.values import brief

Values = dict[str, Any]
"""Values by key, ``group.name``."""


def from_file(file: Path | Traversable, name: str, options: Mapping[str, Option]) -> Values:
    """What a YAML file says. Raises ValueError naming key, value and file."""
    from cli.yaml_file import load

    found: Values = {}
    groups = {option.group for option in options.values() if option.group}
    for key, value in load(file, name).items():
        if key not in groups:
            if key not in options and isinstance(value, dict):
                raise ValueError(f"unknown key {key} in {name}{closest(key, groups)}")
            found |= _checked(key, value, name, options)
        elif isinstance(value, dict):
            for inner, item in value.items():
                found |= _checked(f"{key}.{inner}", item, name, options)
        elif value is not None:
            raise ValueError(f"{key} in {name} must hold keys and values, got {brief(value)}")
    return found


def _checked(key: str, value: object, name: str, options: Mapping[str, Option]) -> Values:
    if key not in options:
        raise ValueError(f"unknown key {key} in {name}{closest(key, options)}")
    kind = options[key].kind
    try:
        return {key: kind.from_yaml(value)}
    except ValueError:
        raise ValueError(f"{key} in {name} must be {kind.expected}, got {brief(value)}") from None


def from_recipe(name: str, folder: Traversable, options: Mapping[str, Option]) -> Values:
    """What a packaged file says. Raises ValueError listing those there are."""
    known = recipe_names(folder)
    if name not in known:
        raise ValueError(f"--recipe must be one of {', '.join(known)}, got {name}")
    return from_file(folder / f"{name}.yaml", f"recipe {name}", options)


def recipe_names(folder: Traversable) -> list[str]:
    """Names of the files in a folder."""
    names = [file.name for file in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def from_environment(prefix: str, options: Iterable[Option]) -> Values:
    """What environment variables say. Raises ValueError naming the variable."""
    found: Values = {}
    for option in options:
        name = variable(prefix, option)
        if name in os.environ:
            found[option.key] = _parsed(option, os.environ[name], name)
    return found


def variable(prefix: str, option: Option) -> str:
    """The environment variable of an option."""
    return f"{prefix}_{option.key.replace('.', '_').upper()}"


def from_flags(given: Mapping[str, list[str] | str | None], options: Iterable[Option]) -> Values:
    """What flags say. Raises ValueError naming the flag."""
    found: Values = {}
    for option in options:
        text = given.get(option.key)
        if isinstance(text, list):  # a flag that may come several times
            items = [_parsed(option, one, option.flag) for one in text]
            found[option.key] = tuple([item for several in items for item in several])
        elif text is not None:
            found[option.key] = _parsed(option, text, option.flag)
    return found


def _parsed(option: Option, text: str, name: str) -> Any:
    try:
        return option.kind.from_text(text)
    except ValueError:
        raise ValueError(
            f"{name} must be {option.kind.expected}, got {text or 'nothing'}"
        ) from None


def closest(word: str, known: Iterable[str], *, before: str = "") -> str:
    """The hint that names the most similar of the known words, or nothing.

    An option's own name, without its group, stands for the options called so.
    """
    words = list(known)
    near = [one for one in words if one.partition(".")[2] == word]
    near = near or difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f"; did you mean {' or '.join(before + one for one in near)}?" if near else ""


def missing(values: Mapping[str, Any], options: Sequence[Option]) -> str | None:
    """What to say about the first option that needs a value and has none."""
    for option in options:
        if option.key not in values:
            return f"{option.flag} is required: {option.meaning}"
    return None
