"""``deqlm train`` refuses what contradicts itself, at once and in words; its help is readable."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.__main__ import main
from training.flags import train_command
from training.options.train import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
# Neither of these exists: what is refused here is refused before any data are read.
NEEDED = ["--data.prepared", "missing", "--run.out", "out"]
TEXTS = ["--data.train", "missing", "--data.valid", "missing", "--run.out", "out"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    hint = " `deqlm train --help` tells what it takes"
    assert line.endswith(hint)
    return line.removeprefix("deqlm train: ").removesuffix(hint).removesuffix(";")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.d-head", "3"],
            "model.n_head * d_head must equal d_model = 256, got 4 * 3 = 12",
        ),
        (["--model.n-head", "3"], "model.n_head must divide d_model = 256, got n_head = 3"),
        (["--forward.tol", "0"], "forward.tol must be a finite number above 0, got 0.0"),
        (["--backward.tol", "-1e-3"], "backward.tol must be a finite number above 0, got -0.001"),
        (["--valid.tol", "nan"], "valid.tol must be a finite number from 0, got nan"),
        (["--backward.max-nfe", "0"], "backward.max_nfe must be at least 1, got 0"),
        (
            ["--equilibrium.n-states", "36"],
            "equilibrium.n_states must be at most forward.max_nfe = 35, got 36",
        ),
        (["--optimiser.min-lr", "1"], "optimiser.min_lr must be in [0, lr = 0.001], got 1.0"),
        (
            ["--equilibrium.jac-loss-increment", "0.1"],
            "equilibrium.jac_loss_every must be at least 1 where jac_loss_increment is 0.1, got 0",
        ),
        (
            ["--forward.method", "anderson", "--forward.line-search"],
            "forward.line_search must be false unless method is broyden, got method",
        ),
        (
            ["--optimiser.batch-chunks", "17"],
            "optimiser.batch_chunks must be at most data.batch_size = 16, got 17",
        ),
        (
            ["--model.cutoffs", "6,3"],
            "model.cutoffs must ascend within [1, n_token - 1 = 2147483646], got [6, 3]",
        ),
        (
            ["--model.cutoffs", "3", "--model.div-val", "1000"],
            "model.d_embed // div_val ** 1 must be at least 1, got 256 // 1000 ** 1",
        ),
        (
            ["--data.tgt-len-std", "2", "--data.tgt-len-min", "65"],
            "data.tgt_len_min must be at most model.tgt_len = 64, got 65",
        ),
        (["--equilibrium.phantom-tau", "0"], "equilibrium.phantom_tau must be in (0, 1], got 0.0"),
        (["--run.device", "gpu"], "run.device must be cpu, cuda or cuda:N, got gpu"),
        (
            ["--run.rank-timeout-s", "1e300"],
            "run.rank_timeout_s must be above 0 and at most 10,000,000 seconds, got 1e+300",
        ),
        (["--run.rank-timeout-s", "nan"], "run.rank_timeout_s must be above 0 and at most 10,000,"),
        (["--run.seed", "4294967296"], "run.seed must be in [0, 4294967295], got 4294967296"),
        (["--run.threads", "-1"], "run.threads must be in [0, 4096], got -1"),
        (
            ["--data.tgt-len-std", "65"],
            "data.tgt_len_std must be at most model.tgt_len = 64, got 65.0",
        ),
        (
            ["--data.train", "text"],
            "data.train must be unset where data.prepared is missing, which has its own, got text",
        ),
        (
            ["--data.vocab-size", "2048"],
            "data.vocab_size must be unset where data.prepared is missing, which has its own, got",
        ),
        (
            ["--recipe", "model-ift", "--equilibrium.jac-loss-freq", "2"],
            "equilibrium.jac_loss_freq must be in [0, 1], got 2.0",
        ),
        (
            ["--model.d-modle", "3"],
            "unknown option --model.d-modle; did you mean --model.d-model?",
        ),
        (["--guard.action", "pray"], "--guard.action must be skip, warn or stop, got pray"),
        (["--recipe", "model"], "--recipe must be one of model-ift, model-ift-jr, shakespeare-"),
    ],
)
def test_contradictions(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([*NEEDED, *flags], capsys).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*TEXTS, "--model.cutoffs", "100,4096"],
            "model.cutoffs must be below data.vocab_size = 4096, got 4096",
        ),
        (
            [*TEXTS, "--data.vocab-size", "0"],
            "data.vocab_size must be at least 1 for sentencepiece, got 0",
        ),
        (["--run.out", "out"], "data.train must name a text, got nothing; or name a folder that"),
        (NEEDED[:2], "--run.out is required: folder of everything the run writes"),
    ],
)
def test_what_is_needed(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(flags, capsys).startswith(message)


def test_an_unknown_key_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {n_heads: 3}\n")
    told = refused([*NEEDED, "--config", str(path)], capsys)
    assert told == f"unknown key model.n_heads in {path}; did you mean model.n_head?"


@pytest.mark.parametrize("command", ["train", "eval", "prepare", "compare", "serve"])
def test_help_fits_80_columns_and_repeats_no_heading(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) == len(set(headings)) >= 1
    assert not [line for line in lines if "<class" in line or "typing." in line or "``" in line]


def test_help_tells_meaning_and_default_of_every_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for option in train_command("deqlm train").options.values():
        assert option.meaning, option.key
        assert f"{option.flag} {option.kind.metavar}" in words.replace("[true|false]", "true|false")
        assert option.meaning.replace("``", "`") in words, option.key


@pytest.mark.parametrize("kind", [TrainOptions, *TrainOptions.groups().values()])
def test_every_field_has_its_sentence(kind: type) -> None:
    from cli.options import meanings

    assert set(meanings(kind)) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("command", ["train", "eval", "prepare", "compare", "report"])
def test_help_loads_nothing_large(command: str) -> None:
    code = (
        "import sys\nfrom cli.__main__ import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'yaml', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
