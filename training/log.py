"""The log of a run: a JSON object a line, and the means over steps that go into it.

Every line has ``event``; those of a run's course have ``step``, the number of steps done:

- ``start``: ``step`` where it begins or goes on, ``options``, as of ``TrainOptions.to_dict``.
- ``step``: means since the last such line (``Averages.take``), ``epoch``, ``seconds``.
- ``valid``: ``mean_nll``, ``perplexity``, ``nfe``, ``unconverged``, ``scored_tokens``, and
  ``residual_by_call``: the mean residual over the tokens after call 1, 2, … of f.
- ``bad_step``: ``reason``, what was done about it (``action``), ``loss``, ``residual``,
  ``grad_norm``.

A number that is not finite is null: JSON has no word for it. No import of torch.
"""

import dataclasses
import json
import logging
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_model.files import write_whole
from training.appending import RecordFile

if TYPE_CHECKING:
    from training.step import StepReport

_LOG = logging.getLogger(__name__)
_KEPT = 10_000
"""Lines that wait for room on the disk; beyond it the oldest are lost."""
_SPECIAL = ("loss", "lr", "skipped", "tokens")


class JsonLog:
    """Appends one JSON object a line; each is with the system when ``write`` returns.

    A write that fails, as on a full disk, leaves no half line. It is reported once; its line and
    those after it wait, and are written when there is room again.
    """

    def __init__(self, path: Path) -> None:
        """Opens a log, ending it where a kill left half a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = RecordFile(path, size=_whole_bytes(path))
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)

    def write(self, event: str, **values: Any) -> None:
        """Adds a line; what is not finite becomes null."""
        line = json.dumps(_plain({"event": event, **values}), allow_nan=False)
        reported = bool(self._waiting)
        self._waiting.append(line.encode() + b"\n")
        error = self._write_waiting()
        if error is not None and not reported:
            _LOG.warning(
                "%s cannot be written: %s; the run goes on, and its lines wait until it can",
                self._path,
                error.strerror,
            )
        elif error is None and reported:
            _LOG.warning("%s is written again", self._path)

    def _write_waiting(self) -> OSError | None:
        """Writes what waits, whole lines only; returns what stopped it."""
        while self._waiting:
            error = self._file.append(self._waiting[0])
            if error is not None:
                return error
            self._waiting.popleft()
        return None

    def flush(self) -> None:
        """Has all lines on the disk. Raises OSError if some still wait."""
        error = self._write_waiting()
        if error is not None:
            raise error
        self._file.sync()

    def close(self) -> None:
        """Ends the log, after a last try to write what waits."""
        error = self._write_waiting()
        if error is not None:
            lost = len(self._waiting)
            _LOG.warning("%s lacks its last %d lines: %s", self._path, lost, error.strerror)
        self._file.close()


def truncate_log(path: Path, step: int) -> None:
    """Drops the lines after a step, and half a line at the end: a run goes on from there.

    All of it happens or nothing. It needs no room on the disk, unless lines to keep come after
    lines to drop. A log that is not there stays so.

    Args:
        path: of the log.
        step: steps done in the state that the run goes on from.

    Raises:
        OSError: the log cannot be read or written; it is as it was.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    keep = [_reaches(line) <= step for line in lines]
    kept = b"".join(line for line, wanted in zip(lines, keep, strict=True) if wanted)
    first_dropped = keep.index(False) if False in keep else len(keep)
    if not any(keep[first_dropped:]):
        os.truncate(path, len(kept))
        return
    write_whole(path, lambda temporary: temporary.write_bytes(kept))


def _reaches(line: bytes) -> float:
    """The step that a line tells of; inf for one that is not whole, which nobody can read."""
    values = read_line(line)
    if values is None:
        return math.inf
    step = values.get("step", 0)
    return step if isinstance(step, int | float) else 0


def read_line(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None where there is none, or its end is missing."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _whole_bytes(path: Path) -> int:
    """Length of a file without half a line at its end; 0 where there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 4096)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


class Averages:
    """Means over the steps since they were last taken, of whatever ``StepReport`` tells."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []
        self._began = time.monotonic()

    def add(self, report: "StepReport") -> None:
        """Counts a step."""
        self._reports.append(report)

    def take(self) -> dict[str, Any]:
        """The means as JSON-ready values, None where nothing was measured; counts again.

        Each number of the reports has its mean under its own name, over the steps that were not
        skipped, where there are any. But ``lr`` is the last, ``skipped`` a count, and ``tokens``
        become ``tokens_per_s``; ``perplexity`` is the exponential of ``loss``.

        Raises:
            ValueError: no step was added.
        """
        if not self._reports:
            raise ValueError("means need at least one step, got none")
        reports, elapsed = self._reports, time.monotonic() - self._began
        self._reports, self._began = [], time.monotonic()
        sound = [report for report in reports if not report.skipped] or reports
        loss = _mean([report.loss for report in sound])
        return {
            "loss": loss,
            "perplexity": None if loss is None else math.exp(min(loss, 50.0)),
            **_means(sound),
            "lr": reports[-1].lr,
            "skipped": sum(report.skipped for report in reports),
            "tokens_per_s": sum(report.tokens for report in reports) / max(elapsed, 1e-9),
        }


def _means(reports: "list[StepReport]") -> dict[str, float | None]:
    """The mean of every other number of the reports, by its name."""
    names = [field.name for field in dataclasses.fields(reports[0])]
    values = {name: [getattr(report, name) for report in reports] for name in names}
    return {
        name: _mean(found)
        for name, found in values.items()
        if name not in _SPECIAL and not any(isinstance(value, str) for value in found)
    }


def _mean(values: list[Any]) -> float | None:
    """Of what is a number; None where none is, or the mean is not finite."""
    numbers = [value for value in values if isinstance(value, int | float)]
    mean = sum(numbers) / len(numbers) if numbers else math.nan
    return mean if math.isfinite(mean) else None


def _plain(value: Any) -> Any:
    """What JSON can say: None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
