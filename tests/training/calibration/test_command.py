"""``deqlm calibrate`` on a tiny model: what it writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from deq_model.checkpoint import fingerprint
from deq_model.errors import CheckpointError
from deq_model.warm_start import WARM_START_FILE, load_warm_start
from server.config import ModelSource, ServerConfig
from server.engine.observer import Unobserved
from server.loading import load_engine
from tests.server.tiny import WORDS, save_words
from training.calibrate import main
from training.calibration.report import with_section

FILES = {"warm_start.safetensors", "warm_start.json", "README.md"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and ``text.txt`` of 900 words."""
    folder = tmp_path_factory.mktemp("calibrated")
    save_words(folder / "model")
    draw = torch.randint(0, len(WORDS), (900,), generator=torch.Generator().manual_seed(2))
    words = [WORDS[i] for i in draw.tolist()]
    lines = [" ".join(words[at : at + 9]) for at in range(0, 900, 9)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source / "model", tmp_path / "model"))


def flags(model: Path, source: Path, *more: str) -> list[str]:
    data = ["--model", str(model), "--data", str(source / "text.txt"), "--threads", "1"]
    return [*data, "--streams", "8", "--hidden", "32", "--window", "4", "--epochs", "8", *more]


def test_the_better_map_is_written(
    model: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = "# A model\n\nText.\n"
    (model / "README.md").write_text(card, encoding="utf-8")
    before = {path.name for path in model.iterdir()}
    assert main(flags(model, source, "--json"), "deqlm calibrate") == 0
    figures = json.loads(capsys.readouterr().out)
    assert {path.name for path in model.iterdir()} == before | FILES
    assert json.loads((model / "warm_start.json").read_text()) == figures
    zeros, *maps = figures["starts"]
    assert [one["start"] for one in (zeros, *maps)] == ["zeros", "linear", "network"]
    best = next(one for one in maps if one["start"] == figures["kept"])
    assert best["saving"] == max(one["saving"] for one in maps) == figures["saving"]
    assert [served["window"] for served in best["served"]] == [1, 4]
    for mine, others in zip(best["served"], zeros["served"], strict=True):
        assert mine["nfe"] < others["nfe"]
        assert mine["change"] < 0.01
    text = (model / "README.md").read_text(encoding="utf-8")
    assert text.startswith(card)
    assert text.count("## Warm start") == 1
    loaded = load_warm_start(model, d_model=16, fingerprint=fingerprint(model))
    assert loaded is not None
    assert loaded.kind == figures["kept"]


def test_nothing_is_written_where_too_little_is_saved(
    model: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in model.iterdir()}
    more = ("--kind", "linear", "--least-saving", "0.99")
    assert main(flags(model, source, *more), "deqlm calibrate") == 0
    assert "Nothing kept: the best map, linear, saves" in capsys.readouterr().out
    assert {path.name for path in model.iterdir()} == before


def test_the_section_takes_its_own_place() -> None:
    section = "<!-- warm start -->\n## Warm start\nnew\n<!-- /warm start -->"
    old = section.replace("new", "old")
    assert with_section(f"# A\n\n{old}\n\n## B\n", section) == f"# A\n\n{section}\n\n## B\n"
    assert with_section(f"# A\n\n{old}\n", section) == f"# A\n\n{section}\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--valid", "short.txt"), "must have at least 64 tokens, got 4"),
        (("--data", "short.txt", "--valid", "text.txt"), "must have at least 64 tokens, got 4"),
        (("--model", "bare"), "has no tokenizer"),
    ],
)
def test_what_cannot_be_is_told(
    more: tuple[str, ...],
    words: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source / "model", "bare")
    (Path("bare") / "vocab.txt").unlink()
    shutil.copy(source / "text.txt", "text.txt")
    Path("short.txt").write_text("the of and\n", encoding="utf-8")
    assert main([*flags(source / "model", source), *more], "deqlm calibrate") == 1
    assert words in capsys.readouterr().err


def test_a_server_takes_it_and_refuses_anothers(model: Path, source: Path) -> None:
    more = ("--kind", "linear", "--json")
    assert main(flags(model, source, *more), "deqlm calibrate") == 0

    def warm(**options: str) -> bool:
        config = ServerConfig(**options)  # type: ignore[arg-type]
        engine = load_engine(ModelSource(name="m", path=model), config, Unobserved())
        engine.stop(grace_s=0)
        return engine._runner._batch.starts_warm

    assert warm()
    assert not warm(warm_start="off")
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"deqlm calibrate --model .* --data TEXT"):
        warm()
    assert not warm(warm_start="off")
    (model / WARM_START_FILE).unlink()
    assert not warm()
