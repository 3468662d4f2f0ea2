"""A run as it lies on disk."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from loadtest.records import Record, RecordError, read_lines, read_records
from loadtest.settings import Settings
from loadtest.shapes import COUNTS, WORKERS, check
from loadtest.stages import Stage

_STAGE: Final = frozenset(item.name for item in fields(Stage))
_WORDS: Final = frozenset({"label", "pattern"})
_LARGEST: Final = 1e15
"""Of a number that can be drawn: bytes, and less of anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What came of one stage.

    Attributes:
        stage: what it was.
        run_s: its begin, in seconds since the run's.
        ended_early: why it did not come to its end; None if it did.
        workers: what each sending process told of itself.
        counts: the server's counts beside the client's; None where they were not compared.
        records: its requests.
    """

    stage: Stage
    run_s: float
    ended_early: str | None
    workers: list[dict[str, Any]]
    counts: list[dict[str, Any]] | None
    records: list[Record]

    @property
    def counted(self) -> list[Record]:
        """Requests that were due after the warm-up."""
        return [one for one in self.records if one.plan.at_s >= self.stage.warmup_s]

    @property
    def counted_s(self) -> float:
        """Seconds in which they were due: fewer than planned where the stage ended early."""
        if self.ended_early is None:
            return self.stage.seconds
        last = max((one.plan.at_s for one in self.counted), default=0.0)
        return max(last - self.stage.warmup_s, 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run.

    Attributes:
        folder: where it lies.
        about: what it was made with and on.
        settings: what it was given.
        stages: in order.
        samples: the server's gauges, second by second.
    """

    folder: Path
    about: dict[str, Any]
    settings: Settings
    stages: list[StageResult]
    samples: list[dict[str, float]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it. Raises RecordError."""
        about = _about(folder / "run.json")
        try:
            settings = Settings.from_json(about["settings"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{folder / 'run.json'}: settings are damaged: {error}") from None
        records = read_records(folder)
        return cls(
            folder=folder,
            about=about,
            settings=settings,
            stages=_stages(folder / "stages.jsonl", records),
            samples=_samples(folder / "server.jsonl"),
        )

    @property
    def swept(self) -> list[StageResult]:
        """The stages without the search for the capacity."""
        return [one for one in self.stages if not one.stage.searches]

    @property
    def ended_early(self) -> str | None:
        """Why the run did not come to its end; None if it did."""
        return next((one.ended_early for one in self.stages if one.ended_early), None)


def _samples(path: Path) -> list[dict[str, float]]:
    """What of the samples can be drawn; none without the file. Raises RecordError."""
    samples = []
    for number, sample in enumerate(read_lines(path) if path.exists() else (), start=1):
        numbers = sample.values() if isinstance(sample, dict) else (None,)
        if not all(type(one) in (int, float) for one in numbers) or "run_s" not in sample:
            raise RecordError(f"{path}, line {number}: is no sample: it must have numbers, by name")
        finite = {name: one for name, one in sample.items() if abs(one) <= _LARGEST}
        samples += [finite] if "run_s" in finite else []
    return samples


def _about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is no JSON") from None
    try:
        check(about, {}, "a run")
        check(about.get("server", {}), {}, "server")
        check(about.get("client", {}), {}, "client")
        check(about.get("server", {}).get("n_parameters", 0), int | float, "server.n_parameters")
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    return about


def _stages(path: Path, records: list[Record]) -> list[StageResult]:
    by_stage: dict[int, list[Record]] = {}
    for record in records:
        by_stage.setdefault(record.stage, []).append(record)
    found = []
    for line in read_lines(path):
        try:
            stage = Stage(**{name: line.pop(name) for name in _STAGE})
            _check(stage, line["run_s"])
            check(line["workers"], WORKERS, "workers")
            if line["counts"] is not None:
                check(line["counts"], COUNTS, "counts")
            found.append(StageResult(stage=stage, records=by_stage.get(stage.number, []), **line))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise RecordError(f"{path}: a stage is damaged: {error}") from None
    if not found:
        raise RecordError(f"{path} has no stage")
    return found


def _check(stage: Stage, run_s: object) -> None:
    """Raises ValueError: of another kind than what is counted and drawn."""
    found = {name: getattr(stage, name) for name in _STAGE} | {"run_s": run_s}
    for name, value in found.items():
        if name in _WORDS and type(value) is not str:
            raise ValueError(f"{name} must be text, got {value!r}")
        if name not in _WORDS and not (isinstance(value, int | float) and abs(value) <= _LARGEST):
            raise ValueError(f"{name} must be a number, got {value!r}")
