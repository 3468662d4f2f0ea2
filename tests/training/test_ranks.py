"""Several ranks by torchrun: the same numbers as one, lost ranks, other numbers of ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from training.distributed import Ranks
from training.errors import OptionsError
from training.opening import open_run
from training.options.train import TrainOptions
from training.state import newest_state
from training.trainer import Trainer

from .runs import config_file, log_of, losses, tiny, write_texts

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    write_texts(tmp_path)


def options(tmp_path: Path, out: str, *, max_steps: int, **run: Any) -> TrainOptions:
    """Every kind of random number, and softmax tails that some ranks have no target in."""
    return tiny(
        tmp_path,
        out=out,
        run={"threads": 1, "tensorboard": "off", "save_every": 4, "rank_timeout_s": 30.0} | run,
        model={"dropout": 0.1, "dropatt": 0.1, "cutoffs": (4, 8), "div_val": 2},
        optimiser={"schedule": "constant", "max_steps": max_steps, "batch_chunks": 2},
        equilibrium={"spectral_radius_every": 7, "spectral_radius_steps": 4},
    )


def torchrun(given: TrainOptions, path: Path, *, more: Sequence[str] = ()) -> subprocess.Popen[str]:
    config = config_file(given, path)
    return subprocess.Popen(
        [*TORCHRUN, "-m", "cli", "train", "--config", str(config), *more],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_two_ranks_give_the_losses_of_one(tmp_path: Path) -> None:
    """One rank, then two, then one, against one all the way."""
    Trainer(options(tmp_path, "one", max_steps=30)).run()
    Trainer(options(tmp_path, "two", max_steps=4)).run()
    process = torchrun(options(tmp_path, "two", max_steps=26, resume=True), tmp_path / "two.yaml")
    _, told = process.communicate(timeout=110)
    assert process.returncode == 0, told
    Trainer(options(tmp_path, "two", max_steps=30, resume=True)).run()
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for event, names in (("step", ("jac_loss", "spectral_radius")), ("valid", ("mean_nll",))):
        for name in names:
            expected = {line["step"]: line[name] or 0.0 for line in log_of(one, event)}
            found = {line["step"]: line[name] or 0.0 for line in log_of(two, event)}
            assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-3)


def worker(process: subprocess.Popen[str], rank: str) -> psutil.Process:
    found = psutil.Process(process.pid).children(recursive=True)
    (child,) = (child for child in found if child.environ().get("RANK") == rank)
    return child


def until_a_state_is_there(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 10/"):  # after that of step 8
            return "".join(seen)
    raise AssertionError("".join(seen))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "rank"),
    [
        (signal.SIGKILL, "1"),
        pytest.param(signal.SIGKILL, "0", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, "1", marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_ends_the_run(tmp_path: Path, number: signal.Signals, rank: str) -> None:
    given = options(tmp_path, "lost", max_steps=100_000, rank_timeout_s=15.0)
    process = torchrun(given, tmp_path / "lost.yaml")
    try:
        until_a_state_is_there(process)
        worker(process, rank).send_signal(number)
        _, told = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert f"rank {rank} is lost or has not answered in time" in told
    assert newest_state(tmp_path / "lost" / "checkpoints") is not None
    again = Trainer(options(tmp_path, "lost", max_steps=100_000, resume=True))
    first = again._progress.step
    assert first >= 8
    assert again.run(max_steps=2).step == first + 2


@pytest.mark.slow
def test_a_signal_to_torchrun_saves(tmp_path: Path) -> None:
    process = torchrun(options(tmp_path, "out", max_steps=100_000), tmp_path / "run.yaml")
    until_a_state_is_there(process)
    process.terminate()
    _, told = process.communicate(timeout=90)
    newest = newest_state(tmp_path / "out" / "checkpoints")
    assert newest is not None, told
    last = log_of(tmp_path / "out", "step")[-1]["step"]
    assert newest.name == f"step-{last:08d}.pt"


@pytest.mark.slow
def test_what_all_ranks_refuse_is_said_once(tmp_path: Path) -> None:
    given = options(tmp_path, "out", max_steps=4)
    process = torchrun(given, tmp_path / "run.yaml", more=["--data.batch_size", "5"])
    _, told = process.communicate(timeout=90)
    assert process.returncode != 0
    message = "data.batch_size must be divisible by the number of ranks, 2, got 5; take 6"
    assert told.count(message) == 1
    assert not (tmp_path / "out").exists()


def test_ranks_that_do_not_divide_the_batch(tmp_path: Path) -> None:
    message = r"data\.batch_size must be divisible by the number of ranks, 3, got 4; take 6"
    with pytest.raises(OptionsError, match=message):
        open_run(tiny(tmp_path), Ranks(rank=1, size=3))
    message = r"batch_chunks must be at most the streams of a rank, 4 / 2 = 2, got 3"
    with pytest.raises(OptionsError, match=message):
        open_run(tiny(tmp_path, optimiser={"batch_chunks": 3}), Ranks(size=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("streams", "size"), [(8, 2), (7, 3), (2, 4), (5, 1)])
def test_shares_are_all_streams_in_order(streams: int, size: int) -> None:
    shares = [Ranks(rank=rank, size=size).share(streams) for rank in range(size)]
    found = [stream for share in shares for stream in range(share.start, share.stop)]
    assert found == list(range(streams))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
