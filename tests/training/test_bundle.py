"""The bundled checkpoint's folder and card."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deq_model.checkpoint import load_checkpoint
from training.bundle import main
from training.bundle_card import duration, history
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
    more = ["--note", "It was made twice.", "--hardware", "two cores", "--part-blocks", "1"]
    (run.parent / "valid.txt").write_text("the cat sat on a mat\n" * 45)
    assert main([*arguments(run, out), *more]) == 0
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
        "12 steps in",
        "on two cores |",
        "and Jacobian regularisation.",
        "| published | 288 | float32 | 0.001 |",
        "| published, first blocks | 128 | float32 | 0.001 |",
        "| the same from float32 weights | 128 | float32 |",
        "| the same, exact | 128 | float64 | 1e-06 |",
        "| chunk-invariant, as served | 128 | float32 | 0.001 |",
        "its first 8 tokens of each stream",
        "public domain",
    ):
        assert part in card, part
    assert str(tmp_path) not in card
    radius = next(line for line in card.splitlines() if line.startswith("| Spectral radius |"))
    assert "at 12 blocks of the held-out text" in radius


def test_what_the_log_says(tmp_path: Path) -> None:
    """Logs of older runs name their fields alike."""
    log = tmp_path / "log.jsonl"
    lines = [
        {"event": "start", "step": 0},
        {"event": "step", "step": 980, "seconds": 71.0, "jac_loss": None},
        {"event": "valid", "step": 980, "mean_nll": 4.5, "perplexity": 90.0, "scored_tokens": 9},
        {"event": "valid", "step": 1470, "mean_nll": None, "perplexity": None},
        {"event": "step", "step": 1960, "seconds": 4860.0, "jac_loss": None},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = history(log, hardware="")
    assert found.facts["Training"] == "1,960 steps in 1 h 21 min"
    assert found.facts["Validation"].startswith("best at step 980, perplexity 90.00 on 9 tokens")
    assert not found.regularised


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.2, "3 s"), (59.6, "1 min"), (61, "1 min"), (3599, "1 h 0 min"), (7300, "2 h 2 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_run_without_a_log(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "log.jsonl").unlink()
    assert main(arguments(run, tmp_path / "small")) == 1
    assert "cannot read the log" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_run_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "none", tmp_path / "small")) == 1
    assert "is not a folder" in capsys.readouterr().err
