"""The commands as a user calls them: flags, YAML, output, exit codes, signals."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from training.cli import eval_main, parse_eval, parse_train, train_main
from training.lock import locked

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
        (["--optimiser.lr", "0"], "optimiser.lr must be a finite number above 0, got 0"),
        (["--optimiser.beta2", "1"], "optimiser.beta2 must be in [0, 1), got 1"),
        (["--optimiser.max-steps", "0"], "optimiser.max_steps must be at least 1, got 0"),
        (["--optimiser.max-steps", "many"], "--optimiser.max-steps must be a whole number, got"),
        (["--equilibrium.jac-loss-weight", "-1"], "equilibrium.jac_loss_weight must be a finite"),
        (["--model.n-head", "3"], "model.n_head must divide d_model = 16, got n_head = 3"),
        (["--data.batch-size", "0"], "data.batch_size must be at least 1, got 0"),
        (["--run.keep", "0"], "run.keep must be at least 1, got 0"),
    ],
)
def test_impossible_options(
    config: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_train(["--config", str(config), *flags], "deqlm train")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"deqlm train: {message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.cutoffs", "5,100"],
            r"cutoffs must ascend within \[1, n_token - 1 = \d+\], got \[5, 100\]",
        ),
        (["--data.batch-size", "400"], r"text must have at least 800 tokens for batch_size 400"),
        (
            ["--model.tgt-len", "5000"],
            r"model.tgt_len must be at most \d+ for a text of \d+ tokens .* got 5000",
        ),
        (["--data.train", "missing.txt"], r"cannot read train text missing.txt: No such file"),
        (["--data.tokenizer", "missing"], r"missing"),
    ],
)
def test_data_that_do_not_suit(
    config: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(["--config", str(config), *flags], "deqlm train") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"deqlm train: .*{message}", last), last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "device must be cpu here: torch finds no CUDA device, got cuda"
    assert train_main(["--config", str(config), "--run.device", "cuda"], "deqlm train") == 1
    assert told in capsys.readouterr().err
    flags = ["--model", "m", "--data", "d", "--device", "cuda"]
    assert eval_main(flags, "deqlm eval") == 1
    assert told in capsys.readouterr().err


def test_train_then_eval(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(["--config", str(config)], "deqlm train") == 0
    model, text = tmp_path / "out" / "model", tmp_path / "valid.txt"
    flags = ["--model", str(model), "--data", str(text), "--batch-size", "4", "--tol", "1e-6"]
    kept = tmp_path / "nll.npz"
    assert eval_main([*flags, "--json", "--per-token", str(kept)], "deqlm eval") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("reading the data ...\n")
    assert "making the model ...\n" in shown.err
    report = json.loads(shown.out)
    assert report["perplexity"] == pytest.approx(math.exp(report["mean_nll"]))
    assert report["unconverged"] == 0
    assert report["nfe"] > 1
    assert (report["mem_len"], report["tgt_len"], report["dtype"]) == (8, 8, "float64")
    with np.load(kept) as file:
        assert file["nll"].size == report["scored_tokens"]
        assert file["nll"].mean() == pytest.approx(report["mean_nll"])
    assert eval_main([*flags, "--mem-len", "0", "--whole-block=false"], "deqlm eval") == 0
    assert "mem_len 0" in " ".join(capsys.readouterr().out.split())


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
    assert "stopping after this step" in rest
    assert re.search(r"stopped after step \d+ of 1000000, .* --run\.resume", rest), rest
    saved = list((tmp_path / "out" / "checkpoints").iterdir())
    assert len(saved) == 1
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in log if line["event"] == "step")
    assert saved[0].name == f"step-{last:08d}.pt"


def test_another_run_in_the_folder_is_waited_for_by_nobody(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with locked(out):
        assert train_main(["--config", str(config)], "deqlm train") == 1
        assert list(out.iterdir()) == []
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"deqlm train: run.out {out} is being written by another run")
    assert train_main(["--config", str(config), "--run.tensorboard", "off"], "deqlm train") == 0


def test_a_folder_that_cannot_be(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "train.txt"
    assert train_main(["--config", str(config), "--run.out", str(out)], "deqlm train") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"deqlm train: run.out must be a folder that can be written, got {out}: File exists"
    )


def test_pretraining_alone_is_warned_of(
    config: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--optimiser.max-steps", "2", "--run.tensorboard", "off"]
    assert train_main(["--config", str(config), *flags], "deqlm train") == 0
    assert "pretrain_steps = 4 is not below optimiser.max_steps = 2" in caplog.text
    assert "of the tokens above the tolerance" in capsys.readouterr().err
