"""The page about training names every option, with the default it has."""

import dataclasses
from pathlib import Path

import pytest

from training.options.evaluation import EvalRun
from training.options.train import TrainOptions

PAGE = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", [name for name in TrainOptions.groups() if name != "backward"])
def test_every_option_is_there_with_its_default(group: str) -> None:
    for field in dataclasses.fields(TrainOptions.groups()[group]):
        flag = f"--{group}.{field.name.replace('_', '-')}"
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{flag}` |")]
        assert line.split("|")[2].strip() == spelled(field.default), flag


def spelled(default: object) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_the_flags_of_eval_exist() -> None:
    section = PAGE.split("## Evaluate")[1].split("## Convert")[0]
    named = {word.strip("`[](),;:.") for word in section.split() if "--" in word}
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(EvalRun)}
    assert named
    assert named <= known
