"""Logs in every state of repair: what a report can read of them."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.report_logs import BAD, options, rows, start, step, valid, written
from training.report.charts import charts
from training.report.page import page
from training.report.reading import ReportError, read_run, read_runs, series


def test_a_line_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), tail='{"event": "step", "st')
    found = read_run(path)
    assert (len(found.steps), found.unreadable) == (1, 0)


def test_a_damaged_line_inside_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), tail='{"ev\n[1]\n' + json.dumps(step(40)))
    assert read_run(path).unreadable == 2
    assert rows(read_runs([path]))["Damaged lines of the log"] == ["2"]


def test_steps_that_a_resume_made_again_count_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), step(40), start(20), step(40, loss=1.0))
    found = read_run(path)
    assert [(record["step"], record["loss"] == 1.0) for record in found.steps] == [
        (20, False),
        (40, True),
    ]
    assert rows(read_runs([path]))["Begun and gone on"] == ["2 times"]


def test_a_log_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    logged = options()
    logged["recipe"] = logged.pop("equilibrium") | {"pretrain_steps": 10}
    logged["run"]["eval_every"] = 5
    path = written(tmp_path / "a", start(options=logged), step(20))
    found = rows(read_runs([path]))
    assert found["equilibrium.pretrain_steps"] == ["10", "0"]
    assert found["run.eval_every"] == ["5", "–"]


def test_what_the_log_lacks_comes_from_the_model_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a", {"event": "step", "step": 20, "loss": 4.0})
    model = path / "model"
    model.mkdir()
    header = {"__metadata__": {}, "w": {"shape": [3, 5]}, "b": {"shape": [5]}}
    encoded = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    (model / "README.md").write_text("# Card\n```json\n" + json.dumps(options()) + "\n```\n")
    found = read_run(path)
    assert found.parameters == 20
    assert found.number("run.seed") == 7


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, struct.pack("<Q", 1 << 60), b"x" * 50])
def test_a_damaged_model_beside_the_log_costs_a_line_only(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "a", start())
    (path / "model").mkdir()
    (path / "model" / "model.safetensors").write_bytes(content)
    assert read_run(path).parameters is None


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"is not a run's folder: it has no log\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="nothing does not exist"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("tail", ["", "\n", "{", "\x00\x01"])
def test_a_log_without_a_line_is_an_error(tmp_path: Path, tail: str) -> None:
    path = written(tmp_path / "a", tail=tail)
    with pytest.raises(ReportError, match="no line that can be read"):
        read_run(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)


FIELDS = st.sampled_from([*step(1), *valid(1), *start(), "parameters", "reason"])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from([start(), step(9), valid(9), BAD]), FIELDS, JSON)))
def test_fields_of_the_wrong_kind_are_left_out(
    tmp_path: Path, changes: list[tuple[dict[str, Any], str, Any]]
) -> None:
    events = [event | {name: value} for event, name, value in changes]
    path = written(tmp_path / "a", start(), *events)
    runs = read_runs([path])
    rows(runs)
    for chart in charts(runs):
        for curve in chart.panel.curves if chart.panel else ():
            assert all(value is None or math.isfinite(value) for value in curve.y)


@pytest.mark.parametrize("size", ["1e308", "-1e308", "1" + "0" * 400, "1e400", "NaN"])
def test_numbers_that_no_axes_have_room_for_are_left_out(tmp_path: Path, size: str) -> None:
    lines = f'{{"event": "step", "step": 2, "loss": {size}, "lr": {size}, "grad_norm": {size}}}\n'
    lines += f'{{"event": "step", "step": {size}, "loss": 1}}\n'
    runs = read_runs([written(tmp_path / "a", step(1), step(3), tail=lines)])
    page(runs)
    assert [record["step"] for record in runs[0].steps] == [1, 3, 2]
    assert series(runs[0].steps, "loss")[0] == [1, 3]


def test_a_line_of_brackets_is_damaged(tmp_path: Path) -> None:
    tail = "[" * 100_000 + "\n" + json.dumps(step(2)) + "\n"
    assert read_run(written(tmp_path / "a", step(1), tail=tail)).unreadable == 1
