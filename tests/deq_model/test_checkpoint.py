"""Checkpoint folders: what is written comes back, and damage is named."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deq_model import checkpoint
from deq_model.checkpoint import load_checkpoint, save_checkpoint
from deq_model.config import ModelConfig
from deq_model.errors import CheckpointError
from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.errors import TokenizerError
from deq_model.tokenizers.word import WordTokenizer

CONFIG = ModelConfig(
    n_token=12, d_model=8, n_head=2, d_head=4, d_inner=16, cutoffs=(4, 8), div_val=2, tgt_len=4
)
WORDS = WordTokenizer(["<eos>", *(f"w{i}" for i in range(11))])


def make_model(config: ModelConfig = CONFIG) -> DEQLanguageModel:
    model = DEQLanguageModel(config)
    model.reset(std=0.1, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", make_model(), WORDS, "# A card\n")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"div_val": 1},
        {"div_val": 1, "cutoffs": (), "tie_projs": ()},
        {"tie_weights": False},
        {"norm": "none", "pre_lnorm": True},
    ],
    ids=["adaptive", "one-table", "flat", "untied", "plain-weights"],
)
def test_what_was_saved_comes_back(tmp_path: Path, change: dict[str, object]) -> None:
    model = make_model(dataclasses.replace(CONFIG, **change))
    save_checkpoint(tmp_path, model, WORDS)
    loaded = load_checkpoint(tmp_path, device="cpu")
    assert loaded.config == model.config
    assert not loaded.model.training
    expected = dict(model.named_parameters())
    got = dict(loaded.model.named_parameters())
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert all(parameter.requires_grad for parameter in got.values())
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.n_token == 12


def test_the_folder_holds_what_it_should_and_nothing_else(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt", "README.md"}
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_tied_table_is_stored_once(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == make_model().n_parameters()


def test_a_folder_without_tokenizer_loads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model())
    assert load_checkpoint(tmp_path, device="cpu").tokenizer is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_are_cast(folder: Path, dtype: torch.dtype) -> None:
    assert load_checkpoint(folder, device="cpu", dtype=dtype).model.dtype == dtype


def test_parameters_can_be_stored_smaller(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model(), dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert load_checkpoint(tmp_path, device="cpu").model.dtype == torch.float32


def test_fingerprint_follows_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    before = load_checkpoint(folder, device="cpu").fingerprint
    assert len(before) == 16
    assert int(before, 16) >= 0
    save_checkpoint(tmp_path / "again", make_model())
    assert checkpoint.fingerprint(tmp_path / "again") == before
    model = make_model()
    with torch.no_grad():
        model.injection.bias[0] += 1e-6
    save_checkpoint(tmp_path / "moved", model)
    assert checkpoint.fingerprint(tmp_path / "moved") != before
    save_checkpoint(tmp_path / "renamed", make_model(dataclasses.replace(CONFIG, mem_len=7)))
    assert checkpoint.fingerprint(tmp_path / "renamed") != before


def test_a_new_tokenizer_replaces_one_of_another_kind(folder: Path) -> None:
    (folder / "vocab.txt").rename(folder / "tokenizer.model")
    save_checkpoint(folder, make_model(), WORDS)
    assert not (folder / "tokenizer.model").exists()
    assert load_checkpoint(folder, device="cpu").tokenizer is not None


def test_a_failed_write_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.fingerprint(folder)

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(folder, make_model())
    assert checkpoint.fingerprint(folder) == before
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scribble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 not safetensors")


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return apply


def drop_bias(state: dict[str, torch.Tensor]) -> None:
    del state["injection.bias"]


def add_one(state: dict[str, torch.Tensor]) -> None:
    state["f.spare"] = torch.zeros(3)


def widen(state: dict[str, torch.Tensor]) -> None:
    state["f.o_net.bias"] = torch.zeros(9)


def poison(state: dict[str, torch.Tensor]) -> None:
    state["f.o_net.bias"][3] = torch.nan


def unknown_key(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"d_model"', '"d_modle"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "model.safetensors"),
        (remove_config, "cannot read .*config.json"),
        (unknown_key, "unknown key in model configuration: d_modle"),
        (truncate, "damaged or not a safetensors file"),
        (scribble, "damaged or not a safetensors file"),
        (empty, "damaged or not a safetensors file"),
        (edit(drop_bias), r"missing injection.bias \(24,\)"),
        (edit(add_one), r"extra f.spare \(3,\)"),
        (edit(widen), r"f.o_net.bias has shape \(9,\), expected \(8,\)"),
        (edit(poison), "not finite: f.o_net.bias"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, device="cpu")


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing is not a folder"):
        load_checkpoint(tmp_path / "missing", device="cpu")


def test_a_vocabulary_of_the_wrong_size(folder: Path) -> None:
    WordTokenizer(["<eos>", "one"]).save(folder)
    with pytest.raises(TokenizerError, match="vocabulary has 2 entries, config n_token is 12"):
        load_checkpoint(folder, device="cpu")
    with pytest.raises(TokenizerError, match="vocabulary has 2 entries"):
        save_checkpoint(folder, make_model(), WordTokenizer(["<eos>", "one"]))
