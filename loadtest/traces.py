"""Recorded arrivals: when requests came, of which kind and size; never what they said."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from loadtest.options import KINDS, MOST_ARRIVALS
from loadtest.records import RecordError, read_lines, read_records
from loadtest.sizes import LONGEST
from loadtest.stages import Planned

_FIELDS: Final = {item.name for item in fields(Planned)}
_LONGEST_S: Final = 7 * 86400
"""Of a trace."""
_WHOLE: Final = ("words", "piece", "max_tokens", "turns")


def to_line(plan: Planned) -> str:
    """One line of a trace."""
    told = {name: value for name, value in asdict(plan).items() if name not in ("number", "begin")}
    told["at_s"], told["cancel_s"] = round(plan.at_s, 6), round(plan.cancel_s, 6)
    return json.dumps(told) + "\n"


def read_trace(path: Path) -> list[Planned]:
    """The arrivals of a trace, or of a run's last stage, in order and from 0 s on.

    Raises:
        RecordError: it cannot be read, is empty, or an arrival is impossible; says which.
    """
    arrivals = _of_run(path) if path.is_dir() else _of_file(path)
    if not arrivals:
        raise RecordError(f"{path} has no arrivals")
    if len(arrivals) > MOST_ARRIVALS:
        raise RecordError(f"{path} has {len(arrivals)} arrivals, the most is {MOST_ARRIVALS}")
    arrivals.sort(key=lambda one: one.at_s)
    if arrivals[-1].at_s > _LONGEST_S:
        raise RecordError(
            f"{path} must not last longer than {_LONGEST_S} s, its last at_s is "
            f"{arrivals[-1].at_s:g}"
        )
    return arrivals


def _of_run(folder: Path) -> list[Planned]:
    records = read_records(folder)
    return [one.plan for one in records if records and one.stage == records[-1].stage]


def _of_file(path: Path) -> list[Planned]:
    arrivals = []
    for number, value in enumerate(read_lines(path)):
        try:
            arrivals.append(_planned(number, value))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path}, line {number + 1}: {error}") from None
    return arrivals


def _planned(number: int, value: Any) -> Planned:
    if not isinstance(value, dict) or not {"at_s", "kind", "words"} <= set(value) <= _FIELDS:
        raise ValueError("an arrival has at_s, kind, words, and what a trace has besides")
    if value["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {value['kind']}")
    for name in _WHOLE:
        size = value.get(name, 0)
        if type(size) is not int or not (name == "words") <= size <= LONGEST:
            raise ValueError(f"{name} must be a whole number in [{int(name == 'words')}, "
                             f"{LONGEST}], got {size!r}")  # fmt: skip
    for name in ("at_s", "cancel_s"):
        seconds = value.get(name, 0.0)
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError(f"{name} must be a number of seconds from 0 on, got {seconds!r}")
    given = {name: value[name] for name in value if name not in ("number", "begin")}
    return Planned(number=number, **given)
