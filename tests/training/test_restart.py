"""Runs that are killed, stopped, or out of room: what is left, and that they go on to the same."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from training.cli import _stopping
from training.errors import SaveError
from training.options.train import TrainOptions
from training.state import load_state, newest_state
from training.trainer import Trainer

from .runs import config_file, course, log_of, tiny, write_texts

ROOT = Path(__file__).resolve().parent.parent.parent
DEQLM = [sys.executable, "-m", "cli", "train"]
KILL_IN_SAVE = """
import os, signal, sys
left, plain = int(sys.argv.pop(1)), os.fsync
def fsync(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(handle)
os.fsync = fsync
from training.cli import train_main
sys.exit(train_main(sys.argv[1:], "deqlm train"))
"""


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    write_texts(tmp_path)


def options(tmp_path: Path, out: str, **changes: Any) -> TrainOptions:
    return tiny(
        tmp_path,
        out=out,
        run={"save_every": 3, "log_every": 2, "threads": 1, "tensorboard": "off"} | changes,
        model={"dropout": 0.1, "dropatt": 0.1},
        optimiser={"max_steps": 24},
        valid={"every": 6},
    )


def start(tmp_path: Path, command: list[str]) -> subprocess.Popen[str]:
    """A process that trains, going on from what there is."""
    path = config_file(options(tmp_path, "killed", resume=True), tmp_path / "run.yaml")
    return subprocess.Popen(
        [*command, "--config", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_after(process: subprocess.Popen[str], delay_s: float) -> int:
    """Kills it so long after its first step; returns how it ended."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode


def straight(tmp_path: Path) -> list[dict[str, Any]]:
    Trainer(options(tmp_path, "straight")).run()
    return course(tmp_path / "straight")


def check_left(tmp_path: Path) -> None:
    """Whatever the moment of a kill, there is no half state under a state's name."""
    newest = newest_state(tmp_path / "killed" / "checkpoints")
    if newest is not None:
        load_state(newest, device="cpu")  # type: ignore[arg-type]


@pytest.mark.timeout(500)  # every start of a process takes seconds
@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 2), *(pytest.param(s, 5, marks=pytest.mark.slow) for s in (2, 3))]
)
def test_killed_at_any_moment_it_goes_on_to_the_same_log(
    tmp_path: Path, seed: int, kills: int
) -> None:
    moments = random.Random(seed)
    for _ in range(kills):
        code = killed_after(start(tmp_path, DEQLM), moments.uniform(0.0, 1.5))
        assert code in (0, -signal.SIGKILL)
        check_left(tmp_path)
    Trainer(options(tmp_path, "killed", resume=True)).run()
    assert course(tmp_path / "killed") == straight(tmp_path)
    best = [(tmp_path / out / "model" / "model.safetensors") for out in ("killed", "straight")]
    assert best[0].read_bytes() == best[1].read_bytes()


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "calls", [(4,), *(pytest.param((n, n + 1), marks=pytest.mark.slow) for n in (1, 3, 6))]
)
def test_killed_while_it_saves(tmp_path: Path, calls: tuple[int, ...]) -> None:
    for call in calls:
        process = start(tmp_path, [sys.executable, "-c", KILL_IN_SAVE, str(call)])
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
        check_left(tmp_path)
    Trainer(options(tmp_path, "killed", resume=True)).run()
    assert course(tmp_path / "killed") == straight(tmp_path)
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 2


def test_the_second_signal_ends_it_at_once() -> None:
    asked = []
    with pytest.raises(KeyboardInterrupt), _stopping(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGINT)
        assert asked == [1]
        signal.raise_signal(signal.SIGINT)
    assert asked == [1]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk with room for small files only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def states(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())


def test_a_full_disk_loses_the_new_state_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(options(tmp_path, "full"))
    trainer.run(max_steps=3)
    with files_of_at_most(12_000), pytest.raises(SaveError, match=r"state of step 7 .*make room"):
        trainer.run(max_steps=4)
    assert states(tmp_path) == ["step-00000003.pt"]
    assert "step 6: the state cannot be written" in caplog.text
    assert "step 6: the best model cannot be written" in caplog.text
    assert not list((tmp_path / "full").rglob("*.tmp"))
    assert {line["what"] for line in log_of(tmp_path / "full", "unsaved")} == {
        "state",
        "best model",
    }
    trainer.run(max_steps=2)  # there is room again
    assert states(tmp_path) == ["step-00000003.pt", "step-00000009.pt"]
    Trainer(options(tmp_path, "full", resume=True)).run()
    assert states(tmp_path) == ["step-00000021.pt", "step-00000024.pt"]
    assert course(tmp_path / "full") == straight(tmp_path)
    assert (tmp_path / "full" / "model" / "config.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "full"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        trainer = Trainer(options(tmp_path, "full"))
        trainer.run(max_steps=3)
        filler = disk / "filler"
        _fill(filler)
        with pytest.raises(SaveError, match="No space left on device"):
            trainer.run(max_steps=5)
        assert states(tmp_path) == ["step-00000003.pt"]
        filler.unlink()
        assert Trainer(options(tmp_path, "full", resume=True)).run().finished
        assert course(disk) == straight(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096) == 4096:
                pass
        except OSError:
            return
