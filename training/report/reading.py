"""What a run's folder tells: its log, and what lies beside it. No import of torch."""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.log import read_line

LOG = "log.jsonl"
_CARD_OPTIONS = re.compile(r"^```json\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LONGEST_HEADER = 1 << 26
_LARGEST = 1e100

Record = Mapping[str, Any]


class ReportError(TrainingError):
    """There is nothing to make a report of, or it cannot be written."""


@dataclass(slots=True, kw_only=True)
class RunLog:
    """A run, as far as its log goes.

    Attributes:
        name: how the page calls it.
        options: nested, as logged; empty if unknown.
        steps, valid, bad_steps: the log's events, in the order of their steps.
        starts: how often the run was begun or gone on with.
        parameters: of the model, None if unknown.
        unreadable: lines of the log that are damaged.
    """

    name: str
    options: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    valid: list[Record] = field(default_factory=list)
    bad_steps: list[Record] = field(default_factory=list)
    starts: int = 0
    parameters: int | None = None
    unreadable: int = 0

    def option(self, *keys: str) -> Any:
        """The first of the options ``group.name`` that there is, else None."""
        for key in keys:
            group, _, name = key.partition(".")
            values = self.options.get(group)
            if isinstance(values, Mapping) and name in values:
                return values[name]
        return None

    def number(self, *keys: str) -> float | None:
        """Likewise, if it is a finite number."""
        return finite(self.option(*keys))

    @property
    def last_step(self) -> int:
        """Steps done, as far as is logged."""
        found = [int(finite(record.get("step")) or 0) for record in [*self.steps, *self.valid]]
        return max(found, default=0)


def finite(value: Any) -> float | None:
    """The value as a number; None if it is none, not finite, or too large to draw axes for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def series(records: Iterable[Record], *names: str) -> tuple[list[float], list[float]]:
    """Steps and values of a field, the first that there is of several names for it."""
    x: list[float] = []
    y: list[float] = []
    for record in records:
        step = finite(record.get("step"))
        found = [finite(record.get(name)) for name in names]
        value = next((number for number in found if number is not None), None)
        if step is not None and value is not None:
            x.append(step)
            y.append(value)
    return x, y


def last(records: Sequence[Record], *names: str) -> float | None:
    """The last value of a field, None if there is none."""
    values = series(records, *names)[1]
    return values[-1] if values else None


def read_runs(paths: Sequence[Path]) -> list[RunLog]:
    """Reads runs, each a folder or its log, and gives them names that differ.

    Raises:
        ReportError: a log is missing, cannot be read, or has no line yet.
    """
    runs = [read_run(path) for path in paths]
    parts = [path.resolve().parts[: -1 if path.is_file() else None] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    for run, name in zip(runs, names, strict=True):
        run.name = name
    return runs


def read_run(path: Path) -> RunLog:
    """Reads one run. Raises ReportError."""
    log = path if path.is_file() else path / LOG
    if not log.exists():
        what = "is not a run's folder: it has no log.jsonl" if path.is_dir() else "does not exist"
        raise ReportError(f"{path} {what}; name the folder that a run wrote, its run.out")
    try:
        lines = log.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ReportError(f"{log} cannot be read: {error.strerror}") from error
    run = RunLog(name=log.parent.name)
    for number, line in enumerate(lines, start=1):
        record = read_line(line)
        if record is not None:
            _take(run, record)
        elif number < len(lines):  # a last line without its end is just being written
            run.unreadable += 1
    if not (run.starts or run.steps or run.valid):
        raise ReportError(f"{log} has no line that can be read; was the run begun?")
    _look_beside(run, log.parent)
    return run


def _take(run: RunLog, record: Record) -> None:
    event = record.get("event")
    if event == "start":
        _start(run, record)
    elif event in ("step", "valid", "bad_step") and finite(record.get("step")) is not None:
        {"step": run.steps, "valid": run.valid, "bad_step": run.bad_steps}[event].append(record)


def _start(run: RunLog, record: Record) -> None:
    """A run that goes on from a step has undone those after it."""
    run.starts += 1
    step = finite(record.get("step")) or 0
    for records in (run.steps, run.valid, run.bad_steps):
        records[:] = [earlier for earlier in records if earlier["step"] <= step]
    if isinstance(record.get("options"), dict):
        run.options = _renamed(record["options"])
    parameters = finite(record.get("parameters"))
    run.parameters = run.parameters if parameters is None else int(parameters)


def _renamed(options: Record) -> Record:
    """Logs of earlier versions call the group ``equilibrium`` ``recipe``."""
    named = dict(options)
    if "recipe" in named and "equilibrium" not in named:
        named["equilibrium"] = named.pop("recipe")
    return named


def _look_beside(run: RunLog, folder: Path) -> None:
    """What the log lacks and the best model's folder has."""
    model = folder / "model"
    if run.parameters is None:
        run.parameters = _parameters(model / "model.safetensors")
    if not run.options:
        run.options = _renamed(_card_options(model / "README.md"))


def _parameters(path: Path) -> int | None:
    """Numbers in a safetensors file, from its header; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < _LONGEST_HEADER else {}
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes) or None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None  # it may be just being replaced, and is only one line of the page


def _card_options(path: Path) -> Record:
    try:
        found = _CARD_OPTIONS.search(path.read_text(encoding="utf-8"))
        options = json.loads(found[1]) if found else {}
    except (OSError, ValueError):
        return {}
    return options if isinstance(options, dict) else {}
