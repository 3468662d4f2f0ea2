"""Records and results made by hand, whose figures can be told by head."""

import json
from pathlib import Path
from typing import Any

from loadtest.objectives import Objectives
from loadtest.options import Load, Mix, Run, Size
from loadtest.records import Record
from loadtest.results import Result, StageResult
from loadtest.settings import Settings
from loadtest.stages import Planned, Stage

METHODS = {"score": "Score", "stream": "ScoreStream", "generate": "Generate", "cancel": "Generate"}


def lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Values of a run's files of JSON lines."""
    return [
        json.loads(line) for path in folder.glob(pattern) for line in path.read_text().splitlines()
    ]


def plan(kind: str = "score", at_s: float = 0.0, **more: Any) -> Planned:
    return Planned(**{"number": 0, "at_s": at_s, "kind": kind, "words": 5} | more)


def record(
    kind: str = "score",
    at_s: float = 0.0,
    seconds: float = 0.1,
    *,
    max_tokens: int = 0,
    **more: Any,
) -> Record:
    """One that was sent when it was due, and took so long."""
    status = more.get("status", "OK")
    given = {
        "stage": 0,
        "process": 0,
        "plan": plan(kind, at_s, max_tokens=max_tokens),
        "sent_s": at_s,
        "done_s": at_s + seconds,
        "calls": [(METHODS.get(kind, "Score"), status)],
    }
    return Record(**given | more)


def stage(**more: Any) -> Stage:
    given = {
        "number": 0,
        "label": "10/s",
        "pattern": "poisson",
        "rate": 10.0,
        "seconds": 10.0,
        "warmup_s": 0.0,
        "seed": 1,
    }
    return Stage(**given | more)


def stage_result(*records: Record, **more: Any) -> StageResult:
    given = {
        "stage": stage(),
        "run_s": 0.0,
        "ended_early": None,
        "workers": [],
        "counts": [],
        "records": list(records),
    }
    return StageResult(**given | more)


def settings(**more: Any) -> Settings:
    given = {
        "run": Run(),
        "load": Load(),
        "mix": Mix(),
        "size": Size(),
        "objective": Objectives(),
    }
    return Settings(**given | more)


def result(*stages: StageResult, folder: Path = Path("run")) -> Result:
    return Result(folder=folder, about={}, settings=settings(), stages=list(stages), samples=[])


def write_run(folder: Path, one: StageResult, *, version: str = "1") -> Path:
    """A run of one stage, as it lies on disk."""
    folder.mkdir()
    about = {"server": {"version": version}, "settings": settings().to_json()}
    (folder / "run.json").write_text(json.dumps(about))
    lines = "".join(record.to_line() for record in one.records)
    (folder / "requests-0.jsonl").write_text(lines)
    line = {**one.stage.to_json(), "run_s": 0.0, "ended_early": None, "workers": []}
    (folder / "stages.jsonl").write_text(json.dumps({**line, "counts": None}) + "\n")
    return folder
