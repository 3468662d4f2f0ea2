"""TensorBoard's files, read back by its own reader."""

import logging
import resource
import signal
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.errors import OptionsError
from training.tensorboard import TensorBoard, open_board

OPTIONS = {
    "optimiser": {"lr": 0.001, "method": "adam"},
    "model": {"cutoffs": [], "tokenizer": None},
}


def opened(folder: Path, step: int = 0) -> TensorBoard:
    board = open_board("on", folder, step=step)
    assert board is not None
    return board


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_values_have_their_tags(tmp_path: Path) -> None:
    board = opened(tmp_path)
    board.write("start", step=0, options=OPTIONS)
    board.write("step", step=20, epoch=0, seconds=1.5, loss=4.0, nfe_forward=8.0, jac_loss=None)
    board.write("bad_step", step=21, reason="the loss is a spike", loss=9.0)
    board.write("valid", step=40, mean_nll=4.5, perplexity=90.0, residual_by_call=[0.5, 0.1])
    board.close()
    found = read(tmp_path).Tags()
    scalars = {"train/loss", "solver/nfe_forward", "valid/loss", "valid/perplexity"}
    assert scalars == set(found["scalars"])
    assert {"options/text_summary", "bad_step/text_summary"} <= set(found["tensors"])
    assert points(tmp_path, "train/loss") == [(20, 4.0)]
    assert points(tmp_path, "valid/perplexity") == [(40, 90.0)]


def test_options_are_hyperparameters_of_this_run(tmp_path: Path) -> None:
    board = opened(tmp_path)
    board.write("start", step=0, options=OPTIONS)
    board.close()
    assert all(path.is_file() for path in tmp_path.iterdir())
    data = read(tmp_path).summary_metadata
    assert any("hparams" in tag for tag in data)


def test_a_value_is_there_when_write_returns(tmp_path: Path) -> None:
    board = opened(tmp_path)
    board.write("step", step=20, loss=4.0)
    assert points(tmp_path, "train/loss") == [(20, 4.0)]
    board.close()


def test_a_resume_purges_later_steps(tmp_path: Path) -> None:
    board = opened(tmp_path)
    for step in (10, 20, 30):
        board.write("step", step=step, loss=1.0)
    board.close()
    board = opened(tmp_path, step=20)
    board.write("step", step=30, loss=2.0)
    board.close()
    assert points(tmp_path, "train/loss") == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_off_writes_nothing(tmp_path: Path) -> None:
    assert open_board("off", tmp_path / "board", step=0) is None
    assert not (tmp_path / "board").exists()


def test_without_the_package_only_on_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_board("auto", tmp_path / "board", step=0) is None
    with pytest.raises(OptionsError, match=r"run.tensorboard = on needs .* 'deqlm\[train\]'"):
        open_board("on", tmp_path / "board", step=0)
    assert not (tmp_path / "board").exists()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "board").write_text("")
    with pytest.raises(OptionsError, match=r"run.tensorboard cannot be auto: .*board.*File exists"):
        open_board("auto", tmp_path / "board", step=0)


def test_a_full_disk_ends_neither_run_nor_board(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = opened(tmp_path)
    board.write("step", step=10, loss=1.0)
    (path,) = tmp_path.iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, before[1]))
    try:
        with caplog.at_level(logging.WARNING, logger="training.tensorboard"):
            board.write("step", step=20, loss=1.0)  # of which nine bytes are taken
            board.write("step", step=30, loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    board.write("step", step=40, loss=1.0)
    board.close()
    assert len(caplog.messages) == 1
    assert points(tmp_path, "train/loss") == [(10, 1.0), (40, 1.0)]
