"""``deqlm prepare`` as a user calls it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.data import open_prepared
from training.options.prepare import PrepareOptions
from training.prepare.cli import main

ROOT = Path(__file__).resolve().parents[3]
LINES = "the cat sat on the mat, and the dog sat too\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for split, n in (("train", 60), ("valid", 9), ("test", 5)):
        (tmp_path / f"ptb.{split}.txt").write_text(LINES * n)
    return tmp_path


def prepare(*arguments: object) -> int:
    try:
        return main([str(word) for word in arguments], "deqlm prepare")
    except SystemExit as ended:
        return int(ended.code or 0)


def test_a_data_set_and_a_second_time(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("ptb", texts, "--out", texts / "out") == 0
    first = capsys.readouterr().out
    assert "prepared" in first and "10 entries in the vocabulary" in first
    assert "train           720 tokens  0 unknown" in first
    assert prepare("ptb", texts, "--out", texts / "out") == 0
    assert "is prepared already" in capsys.readouterr().out
    data = open_prepared(texts / "out")
    assert data.test is not None and len(data.test) == 60


def test_texts_make_pieces(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [texts / f"ptb.{split}.txt" for split in ("train", "valid")]
    assert prepare("text", *paths, "--out", texts / "out", "--vocab-size", 274) == 0
    assert open_prepared(texts / "out").tokenizer.n_token == 274
    assert prepare("text", *paths, "--out", texts / "out", "--vocab-size", 273) == 1
    assert "--vocab-size 274, got 273; prepare again by --force" in capsys.readouterr().err
    flags = ["--out", texts / "out", "--vocab-size", 273, "--force", "true"]
    assert prepare("text", *paths, *flags) == 0
    assert open_prepared(texts / "out").tokenizer.n_token == 273


def test_one_text_and_a_share(texts: Path) -> None:
    flags = ["--out", texts / "out", "--valid-share", 0.1, "--tokenizer-kind", "word"]
    assert prepare("text", texts / "ptb.train.txt", *flags) == 0
    splits = open_prepared(texts / "out").manifest.splits
    assert splits["valid"].tokens == 5 * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the first argument must be one of wikitext-103, ptb, text"),
        (["enwik8"], "must be one of wikitext-103, ptb, text, got enwik8"),
        (["ptb", "a", "b"], "ptb takes one PATH at most, got 2"),
        (["ptb", "--valid-share", "0.1"], "--valid-share must be 0 for ptb, got 0.1"),
        (["text", __file__], "name a text to validate on after the first, or give --valid-share"),
        (["text", "nope.txt"], ": nope.txt does not exist"),
        (["text"], "text takes TRAIN VALID [TEST], got 0 paths"),
        (["text", "a", "b", "--valid-share", "0.1"], "--valid-share is for one text, got 2"),
        (
            ["text", "a", "b", "--url", "http://x/"],
            "--url and --download-dir must be unset for text",
        ),
        (["text", "a", "b", "--valid-share", "1"], "valid_share must be in [0, 1), got 1"),
        (["text", "a", "b", "--sha256", "00"], "sha256 must be given with url"),
        (["text", "a", "b", "--nonsense", "1"], "nonsense"),
    ],
)
def test_usage_errors(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(*arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab-size", "100"], "vocab_size must be at least 259 for sentencepiece"),
        (["--vocab-size", "100000"], "vocab_size must be at most 275 for text"),
        (["--tokenizer-kind", "word", "--vocab-size", "1"], "0 for all words, or at least 2"),
        (["--tokenizer", "missing.model"], "cannot read tokenizer missing.model"),
    ],
)
def test_what_goes_wrong_is_one_line(
    texts: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [texts / f"ptb.{split}.txt" for split in ("train", "valid")]
    assert prepare("text", *paths, "--out", texts / "out", *flags) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("field", dataclasses.fields(PrepareOptions), ids=lambda field: field.name)
def test_the_page_names_every_flag(field: dataclasses.Field[object]) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"\n| `--{field.name.replace('_', '-')}` |" in page


def test_help_and_a_second_time_import_no_torch(texts: Path) -> None:
    assert prepare("ptb", texts, "--out", texts / "out") == 0
    for arguments in (["--help"], ["ptb", str(texts), "--out", str(texts / "out")]):
        code = (
            "import json, sys\nfrom training.prepare.cli import main\n"
            f"try: main({arguments!r}, 'deqlm prepare')\n"
            "except SystemExit: pass\n"
            "sys.stderr.write(json.dumps([name for name in ('torch',) if name in sys.modules]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(done.stderr.splitlines()[-1]) == []
        assert "usage" in done.stdout or "is prepared already" in done.stdout
