"""Types of options: how a flag's text, or a value in YAML, becomes a value of its type."""

import os
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_SHOWN = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}
_YES = ("true", "yes", "on")
_NO = ("false", "no", "off")
_NOTHING = ("none", "null")
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = 3, 4, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The type of an option.

    Attributes:
        base: bool, int, float, str or Path; that of an item where there may be several.
        choices: the words a str may be; empty for any.
        optional: whether it may be None, in flags none.
        several: whether it is a tuple.
    """

    base: type
    choices: tuple[str, ...] = ()
    optional: bool = False
    several: bool = False

    @classmethod
    def of(cls, annotation: Any) -> "Kind":
        """Of a field's annotation. Raises TypeError for one that no flag can be made for."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType) and len(arguments) == 2:
            if type(None) in arguments:
                inner = cls.of(next(a for a in arguments if a is not type(None)))
                return cls(
                    base=inner.base, choices=inner.choices, several=inner.several, optional=True
                )
        if origin is tuple and arguments[1:] == (...,):
            return cls(base=arguments[0], several=True)
        if origin is Literal and all(isinstance(choice, str) for choice in arguments):
            return cls(base=str, choices=arguments)
        if annotation in _SHOWN:
            return cls(base=annotation)
        raise TypeError(f"no flag can be made for {annotation}")

    @property
    def expected(self) -> str:
        """What a value must be, for messages."""
        words = _listed(self.choices) if self.choices else _WORDS.get(self.base, "a path")
        if self.several:
            words = f"{'whole numbers' if self.base is int else 'values'} with commas between them"
        return words + (", or none" if self.optional else "")

    @property
    def metavar(self) -> str:
        """What stands for the value in help."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return _SHOWN[self.base] + (",..." if self.several else "")

    def from_text(self, text: str) -> Any:
        """The value that a flag's text stands for. Raises ValueError."""
        if (self.optional or self.several) and text.lower() in _NOTHING:
            return () if self.several else None
        if self.several:
            inner = text.strip().removeprefix("[").removesuffix("]")
            return tuple([self._one(item.strip()) for item in inner.split(",") if item.strip()])
        return self._one(text)

    def from_yaml(self, value: object) -> Any:
        """The same for a value as YAML has it. Raises ValueError."""
        if value is None and (self.optional or self.several):
            return () if self.several else None
        if self.several:
            if not isinstance(value, list):
                raise ValueError(self.expected)
            return tuple([self._item(item) for item in value])
        return self._item(value)

    def _item(self, value: object) -> Any:
        if isinstance(value, bool) and self.choices:  # YAML takes on and off for true and false
            value = ("off", "on")[value]
        if isinstance(value, str) and self.base in (str, Path, float):  # 1e-3 is a text in YAML
            return self._one(value)
        if type(value) is int and self.base is float:
            return float(value)
        if type(value) is not self.base:
            raise ValueError(self.expected)
        return value

    def _one(self, text: str) -> Any:
        if self.base is bool:
            return _truth(text.lower())
        if self.base is Path:
            return _path(text)
        if self.choices and text not in self.choices:
            raise ValueError(self.expected)
        return self.base(text)


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it, groups within groups included."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def brief(value: object) -> str:
    """As Python writes it, cut off: aliases make a few lines of YAML stand for gigabytes."""
    return _BRIEF.repr(value)


def shown(value: object) -> str:
    """A value as a flag would give it, for help and tables."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _path(text: str) -> Path:
    """Refuses what no file can be called, which YAML can spell: the system would say it later."""
    if not text or "\0" in text:
        raise ValueError(text)
    os.fsencode(text)
    return Path(text)


def _truth(word: str) -> bool:
    if word not in _YES + _NO:
        raise ValueError(word)
    return word in _YES


def _listed(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
