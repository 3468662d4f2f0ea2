"""Options from dataclasses: their names, meanings and defaults, and instances made of them."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from cli.values import Kind

_ENTRY = re.compile(r"^    (\w+): (.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of an option class.

    Attributes:
        group: name of its group, empty for none.
        name: of the field.
        kind: its type.
        meaning: from the class's docstring.
        default: MISSING if a value must be given.
    """

    group: str
    name: str
    kind: Kind
    meaning: str
    default: Any

    @property
    def key(self) -> str:
        """Its name in messages: ``group.name``."""
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def flag(self) -> str:
        """Its flag, with dashes."""
        return "--" + self.key.replace("_", "-")


def options_of(group: str, kind: type, default: Any = MISSING) -> Iterator[Option]:
    """The options of a class, its own before those that it has from another.

    Args:
        group: the prefix of their flags, empty for none.
        kind: the dataclass.
        default: an instance whose values are the defaults, in place of the class's own.
    """
    annotations, told = typing.get_type_hints(kind), meanings(kind)
    own_names = inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own_names):
        own = field.default
        if own is MISSING and field.default_factory is not MISSING:
            own = field.default_factory()
        yield Option(
            group=group,
            name=field.name,
            kind=Kind.of(annotations[field.name]),
            meaning=told.get(field.name, ""),
            default=own if default is MISSING else getattr(default, field.name),
        )


@functools.cache
def meanings(kind: type) -> Mapping[str, str]:
    """What a class's docstring says of each field, on one line without the full stop.

    Fields that it has from another class are told there.
    """
    found: dict[str, str] = {}
    for base in kind.__bases__:
        if dataclasses.is_dataclass(base):
            found |= meanings(base)
    name = ""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return {name: text.removesuffix(".") for name, text in found.items()}


def summary(kind: type) -> str:
    """The first sentence of a class's docstring, without the full stop."""
    return (inspect.getdoc(kind) or "").partition("\n")[0].removesuffix(".")


def make(group: str, kind: type, values: Mapping[str, Any]) -> Any:
    """An instance; what it finds wrong is told with the group's name. Raises ValueError."""
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(_with_group(group, kind, str(error))) from error


def _with_group(group: str, kind: type, message: str) -> str:
    first = re.match(r"\w+", message)
    names = {field.name for field in dataclasses.fields(kind)}
    if not group or first is None or message.startswith(f"{group}."):
        return message
    return f"{group}.{message}" if first[0] in names else f"{group}: {message}"
