"""Values from YAML files; loaded only where there is one."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import yaml

from cli.values import brief


class Readable(Protocol):
    """A file on disk, or one inside an installed package."""

    def read_bytes(self) -> bytes:
        """All of it."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would silently take the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # of 2020-13-45 or !!bool x, as they come
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"{brief(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below, as no key of ours
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value} comes twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def load(file: Readable, name: str) -> dict[str, Any]:
    """The keys and values of a file; an empty one has none. Raises ValueError naming it."""
    try:
        values = yaml.load(file.read_bytes().decode("utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name} is not YAML: {_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold keys and values, got {brief(values)}")
    return {str(key): value for key, value in values.items()}


def dump(values: dict[str, Any]) -> str:
    """The values as YAML, in their order, a list on one line."""
    write: Callable[..., str] = yaml.dump
    return write(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=80)


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, RecursionError):
        return "too many brackets within brackets"
    return " ".join(str(error).split())
