"""Whether what was read as JSON has the shape in which it was written."""

from types import NoneType, UnionType
from typing import Any, Final

Shape = type | UnionType | dict[str, Any] | list[Any]
"""A kind of value; an object with at least such members, or a list of such items."""

WORKERS: Final = [{"loop_lag_s": {"p99": int | float}, "cpu_share": int | float}]
COUNTS: Final = [
    {
        "name": str,
        "server": int | float,
        "least": int | float,
        "most": int | float | NoneType,
        "agrees": bool,
    }
]


def check(value: object, shape: Shape, name: str) -> None:
    """Looks at all of a value.

    Args:
        value: as JSON has it.
        shape: that it must have.
        name: of the value, for messages.

    Raises:
        ValueError: it has another one; names the place.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {value!r}")
        for key, inner in shape.items():
            check(value.get(key), inner, f"{name}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {value!r}")
        for index, item in enumerate(value):
            check(item, shape[0], f"{name}[{index}]")
    elif not isinstance(value, shape):
        kinds = getattr(shape, "__name__", shape)
        raise ValueError(f"{name} must be {kinds}, got {value!r}")
