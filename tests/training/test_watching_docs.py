"""The page about watching a run names what the log has."""

import dataclasses
from pathlib import Path

from training.log import Averages
from training.step import StepReport
from training.validation import Measurement

TEXT = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
PAGE = TEXT.split("## The log")[1].split("\n## ")[0]


def fields(event: str) -> set[str]:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{event}` |")]
    return set(line.split("|")[2].replace("`", " ").replace(",", " ").split())


def test_all_fields_of_a_step_are_named() -> None:
    averages = Averages()
    plain = {field.name: 1.0 for field in dataclasses.fields(StepReport)}
    averages.add(StepReport(**plain | {"skipped": False}))  # type: ignore[arg-type]
    assert set(averages.take()) | {"step", "epoch", "seconds"} == fields("step")


def test_all_fields_of_a_measurement_are_named() -> None:
    assert {field.name for field in dataclasses.fields(Measurement)} | {"step"} == fields("valid")
