"""The log: whole lines only, whatever happens to the process or the disk."""

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.log import Averages, JsonLog, truncate_log
from training.step import StepReport


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "log.jsonl"


def written(path: Path, steps: list[int]) -> Path:
    log = JsonLog(path)
    for step in steps:
        log.write("step", step=step)
    log.close()
    return path


def test_a_line_is_there_when_write_returns(path: Path) -> None:
    log = JsonLog(path)
    log.write("step", step=1, loss=2.5, found=[1.0, math.inf], nested={"a": math.nan})
    assert events(path) == [
        {"event": "step", "step": 1, "loss": 2.5, "found": [1.0, None], "nested": {"a": None}}
    ]
    log.close()


def test_opening_goes_on_after_the_last_whole_line(path: Path) -> None:
    written(path, [1, 2])
    with path.open("ab") as file:
        file.write(b'{"event": "step", "st' + b"x" * 10_000)  # longer than one look back
    written(path, [3])
    assert [event["step"] for event in events(path)] == [1, 2, 3]


def test_a_file_of_half_a_line_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"ev')
    written(path, [1])
    assert [event["step"] for event in events(path)] == [1]


@pytest.fixture
def small_disk() -> Iterator[Any]:
    """A limit on the size of files stands for a disk's: the system takes a part of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1])
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_no_half_line_and_nothing_is_lost(
    path: Path, small_disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log = JsonLog(path)
    log.write("step", step=1)
    size = path.stat().st_size
    small_disk(size + 10)
    with caplog.at_level(logging.WARNING, logger="training.log"):
        log.write("step", step=2)
        log.write("step", step=3)
        assert path.stat().st_size == size
        small_disk(None)
        log.write("step", step=4)
    assert [event["step"] for event in events(path)] == [1, 2, 3, 4]
    assert [("cannot be" in text, "again" in text) for text in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    log.close()


def test_flushing_says_when_lines_still_wait(path: Path, small_disk: Any) -> None:
    log = JsonLog(path)
    log.write("step", step=1)
    log.flush()
    small_disk(5)
    log.write("step", step=2)
    with pytest.raises(OSError, match="too large"):
        log.flush()
    small_disk(None)
    log.flush()
    assert [event["step"] for event in events(path)] == [1, 2]
    log.close()


def test_closing_on_a_full_disk_says_what_is_lost(
    path: Path, small_disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log = JsonLog(path)
    small_disk(5)
    log.write("step", step=1)
    log.close()
    assert "lacks its last 1 lines" in caplog.messages[-1]
    small_disk(None)
    assert path.read_bytes() == b""


def test_truncating_drops_later_steps_and_half_a_line(path: Path) -> None:
    written(path, [1, 2, 3, 4])
    with path.open("ab") as file:
        file.write(b'{"event": "step", "step": 2')
    truncate_log(path, 2)
    assert [event["step"] for event in events(path)] == [1, 2]


def test_truncating_keeps_earlier_steps_behind_later_ones(path: Path) -> None:
    written(path, [1, 5, 2, 6])
    truncate_log(path, 2)
    assert [event["step"] for event in events(path)] == [1, 2]
    assert sorted(path.parent.iterdir()) == [path]


def test_lines_without_a_step_stay(path: Path) -> None:
    log = JsonLog(path)
    log.write("note", text="a")
    log.write("step", step=9)
    log.close()
    truncate_log(path, 0)
    assert [event["event"] for event in events(path)] == ["note"]


def test_a_log_that_is_not_there_stays_so(path: Path) -> None:
    truncate_log(path, 0)
    assert not path.exists()


@given(steps=st.lists(st.integers(0, 9)), step=st.integers(0, 9), half=st.binary(max_size=8))
def test_what_is_kept_is_all_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], step: int, half: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("log") / "log.jsonl", steps)
    with path.open("ab") as file:
        file.write(half.replace(b"\n", b"").replace(b"\r", b""))
    truncate_log(path, step)
    assert [event["step"] for event in events(path)] == [n for n in steps if n <= step]


def test_truncating_to_earlier_lines_needs_no_room(path: Path, small_disk: Any) -> None:
    written(path, [1, 2, 3])
    small_disk(1)
    truncate_log(path, 1)
    assert [event["step"] for event in events(path)] == [1]


def test_a_rewrite_that_fails_leaves_the_log(path: Path, small_disk: Any) -> None:
    before = written(path, [1, 5, 2]).read_bytes()
    small_disk(1)
    with pytest.raises(OSError):
        truncate_log(path, 2)
    small_disk(None)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_whole_lines(path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom training.log import JsonLog\n"
        "log = JsonLog(pathlib.Path(sys.argv[1]))\n"
        "for step in range(3): log.write('step', step=step)\n"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == -signal.SIGKILL
    assert [event["step"] for event in events(path)] == [0, 1, 2]


def report(**values: Any) -> StepReport:
    import dataclasses

    plain: dict[str, Any] = {field.name: 1.0 for field in dataclasses.fields(StepReport)}
    return StepReport(**plain | {"tokens": 10, "skipped": False} | values)


def test_means_are_over_sound_steps() -> None:
    averages = Averages()
    averages.add(report(loss=2.0, nfe_forward=4, jac_loss=None, lr=0.1))
    averages.add(report(loss=4.0, nfe_forward=8, jac_loss=0.5, lr=0.2))
    averages.add(report(loss=math.nan, nfe_forward=9, jac_loss=None, lr=0.3, skipped=True))
    values = averages.take()
    assert (values["loss"], values["nfe_forward"], values["jac_loss"]) == (3.0, 6.0, 0.5)
    assert values["perplexity"] == pytest.approx(math.exp(3.0))
    assert (values["lr"], values["skipped"]) == (0.3, 1)
    assert values["tokens_per_s"] > 0
    assert "tokens" not in values


def test_what_is_not_a_finite_number_is_none() -> None:
    averages = Averages()
    averages.add(report(loss=math.nan, jac_loss=None, grad_norm=math.inf, skipped=True))
    values = averages.take()
    names = ("loss", "perplexity", "jac_loss", "grad_norm")
    assert [values[name] for name in names] == [None] * 4


def test_means_need_a_step() -> None:
    averages = Averages()
    averages.add(report())
    averages.take()
    with pytest.raises(ValueError, match="at least one step"):
        averages.take()
