"""The bundled checkpoint's folder and card."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deq_model.checkpoint import load_checkpoint
from deq_model.errors import CheckpointError
from training.bundle import main
from training.trainer import Trainer

from .runs import tiny, write_texts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_texts(tmp_path)
    data = {"batch_size": 16}
    Trainer(tiny(tmp_path, data=data, optimiser={"max_steps": 12}, valid={"every": 4})).run()
    return tmp_path / "out"


def arguments(run: Path, out: Path) -> list[str]:
    text = str(run.parent / "valid.txt")
    return [str(run), str(out), "--text", text, "--command", "deqlm train --config x.yaml"]


def test_a_half_precision_copy_with_measured_figures(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "small"
    assert main([*arguments(run, out), "--note", "It was made twice."]) == 0
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float16}
    best = load_checkpoint(run / "model", device="cpu").model
    loaded = load_checkpoint(out, device="cpu")
    for name, parameter in best.named_parameters():
        close = torch.allclose(parameter, loaded.model.get_parameter(name), rtol=1e-3, atol=1e-6)
        assert close, name
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# small\n")
    for part in (
        "deqlm train --config x.yaml",
        "It was made twice.",
        "12 steps",
        "| published solver, exact | float64 | 1e-06 |",
        "| token by token, as served | float32 | 0.001 |",
        "public domain",
    ):
        assert part in card, part


def test_a_run_without_a_log(run: Path, tmp_path: Path) -> None:
    (run / "log.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the log .*log.jsonl"):
        main(arguments(run, tmp_path / "small"))


def test_a_run_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        main(arguments(tmp_path / "none", tmp_path / "small"))
