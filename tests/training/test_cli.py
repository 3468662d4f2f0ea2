"""The commands as a user calls them: flags, YAML, output, exit codes, signals."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from training.cli import eval_main, parse_eval, parse_train, train_main

from .runs import tiny, write_texts

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A YAML file of a tiny run."""
    write_texts(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny(tmp_path).to_dict()))
    return path


def test_yaml_holds_every_option(tmp_path: Path, config: Path) -> None:
    assert parse_train(["--config", str(config)], "deqlm train") == tiny(tmp_path)


def test_flags_go_before_yaml_in_either_spelling(config: Path) -> None:
    flags = ["--optimiser.max-steps", "7", "--model.mem_len=5", "--model.cutoffs", "[3, 6]"]
    options = parse_train(["--config", str(config), *flags, "--run.resume"], "deqlm train")
    assert (options.optimiser.max_steps, options.model.mem_len) == (7, 5)
    assert options.model.cutoffs == (3, 6)
    assert options.run.resume
    assert options.optimiser.warmup_steps == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimiser.lr", "0"], "lr must be a finite number above 0, got 0"),
        (["--optimiser.min-lr", "1"], "min_lr must be in [0, lr = 0.01], got 1"),
        (["--optimiser.beta2", "1"], "beta2 must be in [0, 1), got 1"),
        (["--optimiser.max-steps", "0"], "max_steps must be at least 1, got 0"),
        (["--optimiser.max-steps", "many"], "max_steps"),
        (["--equilibrium.jac-loss-freq", "1.5"], "jac_loss_freq must be in [0, 1], got 1.5"),
        (["--equilibrium.jac-loss-weight", "-1"], "jac_loss_weight must be a finite number from 0"),
        (["--equilibrium.matmul-dtype", "float8"], "float8"),
        (["--model.n-head", "3"], "n_head must divide d_model = 16, got n_head = 3"),
        (["--forward.tol", "0"], "tol must be a finite number above 0, got 0"),
        (["--data.batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--run.keep", "0"], "keep must be at least 1, got 0"),
        (["--model.d-modle", "3"], "d_modle"),
    ],
)
def test_impossible_options(
    config: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_train(["--config", str(config), *flags], "deqlm train")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_key_in_yaml(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "extra: 3\n")
    with pytest.raises(SystemExit):
        parse_train(["--config", str(config)], "deqlm train")
    assert "extra" in capsys.readouterr().err


@pytest.mark.parametrize("command", [train_main, eval_main])
def test_help_shows_meaning_default_and_dashes(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(["--help"], "deqlm x")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "-nfe" in text
    assert "max_nfe" not in text.split("options:")[0]
    assert "default: 35" in text


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom training.cli import train_main\n"
        "try:\n    train_main(['--help'], 'x')\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_train_then_eval(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(["--config", str(config)], "deqlm train") == 0
    model, text = tmp_path / "out" / "model", tmp_path / "valid.txt"
    flags = ["--model", str(model), "--data", str(text), "--batch-size", "4", "--tol", "1e-6"]
    kept = tmp_path / "nll.npz"
    assert eval_main([*flags, "--json", "--per-token", str(kept)], "deqlm eval") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["perplexity"] == pytest.approx(math.exp(report["mean_nll"]))
    assert report["unconverged"] == 0
    assert report["nfe"] > 1
    assert (report["mem_len"], report["tgt_len"], report["dtype"]) == (8, 8, "float64")
    with np.load(kept) as file:
        assert file["nll"].size == report["scored_tokens"]
        assert file["nll"].mean() == pytest.approx(report["mean_nll"])
    assert eval_main([*flags, "--mem-len", "0", "--whole-block=false"], "deqlm eval") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["mem_len"] == "0"
    assert float(lines["perplexity"]) != report["perplexity"]


def test_the_published_solver_is_the_default() -> None:
    flags = ["--model", "m", "--data", "d", "--max-nfe", "150"]
    solver = parse_eval(flags, "deqlm eval").solver()
    assert (solver.method, solver.depth, solver.restart) == ("broyden", 150, math.inf)
    solver = parse_eval([*flags, "--whole-block", "false"], "deqlm eval").solver()
    assert solver.depth == 12
    assert solver.restart < math.inf


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--model", "missing", "--data", "d"],
            1,
            "deqlm eval: checkpoint missing is not a folder",
        ),
        (["--model", "m", "--data", "d", "--tol", "0"], 2, "tol must be a finite number above 0"),
        (["--model", "m", "--data", "d", "--max-nfe", "0"], 2, "max_nfe must be at least 1"),
        (["--model", "m", "--data", "d", "--tgt-len", "0"], 2, "tgt_len must be at least 1"),
        (["--model", "m"], 2, "data"),
    ],
)
def test_eval_that_cannot_be(
    flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        got = eval_main(flags, "deqlm eval")
    except SystemExit as stopped:
        got = stopped.code  # type: ignore[assignment]
    assert got == code
    assert message in capsys.readouterr().err


def test_train_on_a_missing_text(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", str(config), "--data.train", "missing.txt"]
    assert train_main(flags, "deqlm train") == 1
    assert "deqlm train: cannot read text missing.txt" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_its_state_saved(
    tmp_path: Path, config: Path, number: signal.Signals
) -> None:
    flags = ["--config", str(config), "--optimiser.max_steps", "1000000", "--run.threads", "1"]
    code = (
        "import sys; from training.cli import train_main; sys.exit(train_main(sys.argv[1:], 'x'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:  # the first measurement says that steps are being made
        seen.append(line)
        if line.startswith("step 10/"):
            process.send_signal(number)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(seen) + rest
    saved = list((tmp_path / "out" / "checkpoints").iterdir())
    assert len(saved) == 1
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in log if line["event"] == "step")
    assert saved[0].name == f"step-{last:08d}.pt"
