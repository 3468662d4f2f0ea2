"""Conversion from the published layout and back, and files that must be refused."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deq_model.checkpoint import load_checkpoint, save_checkpoint
from deq_model.config import ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.published import to_published
from deq_model.tokenizers.word import WordTokenizer
from training.convert import main

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ModelConfig(
    n_token=12, d_model=8, n_head=2, d_head=4, d_inner=16, cutoffs=(4, 8), div_val=2, tgt_len=4
)
State = dict[str, torch.Tensor]


@pytest.fixture
def model() -> DEQLanguageModel:
    model = DEQLanguageModel(CONFIG)
    model.reset(std=0.1, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def files(tmp_path: Path, model: DEQLanguageModel) -> Path:
    """``model.pth``, ``config.json`` and ``vocab.txt`` in a folder."""
    torch.save(to_published(model.state_dict(), CONFIG), tmp_path / "model.pth")
    CONFIG.save(tmp_path / "config.json")
    WordTokenizer(["<eos>", *(f"w{i}" for i in range(11))]).save(tmp_path)
    return tmp_path


def convert(files: Path, *, source: str = "model.pth") -> int:
    arguments = [str(files / source), str(files / "out")]
    arguments += ["--config", str(files / "config.json"), "--vocab", str(files / "vocab.txt")]
    return main(arguments, "deqlm convert")


def test_there_and_back(files: Path, model: DEQLanguageModel) -> None:
    assert convert(files) == 0
    loaded = load_checkpoint(files / "out", device="cpu")
    assert loaded.tokenizer is not None
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.model.get_parameter(name)), name
    back = files / "back" / "again.pth"
    assert main([str(files / "out"), str(back), "--to-pth"], "deqlm convert") == 0
    state = torch.load(back, weights_only=True)
    before = torch.load(files / "model.pth", weights_only=True)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


def rewrite(change: Callable[[State], State]) -> Callable[[Path], None]:
    def apply(files: Path) -> None:
        state = torch.load(files / "model.pth", weights_only=True)
        torch.save(change(state), files / "model.pth")

    return apply


def test_data_parallel_names(files: Path) -> None:
    rewrite(lambda state: {f"module.{name}": tensor for name, tensor in state.items()})(files)
    assert convert(files) == 0
    assert load_checkpoint(files / "out", device="cpu").config == CONFIG


def test_tied_tensors_stored_apart_and_slices_of_one_storage(
    files: Path, model: DEQLanguageModel
) -> None:
    def apart(state: State) -> State:
        changed = {name: tensor.clone() for name, tensor in state.items()}
        both = torch.stack([state["inject_conv.bias"]] * 2)
        return changed | {"inject_conv.bias": both[0]}

    rewrite(apart)(files)
    assert convert(files) == 0
    loaded = load_checkpoint(files / "out", device="cpu").model
    assert torch.equal(loaded.injection.bias, model.injection.bias)


def test_the_format_before_zip_files(files: Path) -> None:
    state = torch.load(files / "model.pth", weights_only=True)
    torch.save(state, files / "model.pth", _use_new_zipfile_serialization=False)
    assert convert(files) == 0


class Malicious:
    """A pickle of this would make a file."""

    def __init__(self, marker: Path, call: Callable[..., object]) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[object, ...]:
        if self.call is os.system:
            return os.system, (f"touch {self.marker}",)
        return self.call, (self.marker,)


@pytest.mark.parametrize("call", [os.system, Path.touch, subprocess.getoutput])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], zipped: bool, call: Callable[..., object]
) -> None:
    marker = files / "ran"
    state = torch.load(files / "model.pth", weights_only=True) | {"x": Malicious(marker, call)}
    torch.save(state, files / "model.pth", _use_new_zipfile_serialization=zipped)
    assert convert(files) == 1
    assert not marker.exists()
    assert not (files / "out").exists()
    assert "is refused: it is a pickle that would run code" in capsys.readouterr().err


def truncate(files: Path) -> None:
    path = files / "model.pth"
    path.write_bytes(path.read_bytes()[:-2000])


def scribble(files: Path) -> None:
    (files / "model.pth").write_bytes(b"no checkpoint at all")


def empty(files: Path) -> None:
    (files / "model.pth").write_bytes(b"")


def other_zip(files: Path) -> None:
    with zipfile.ZipFile(files / "model.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")


def a_list(files: Path) -> None:
    torch.save([torch.zeros(3)], files / "model.pth")


def drop(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "func.pos_ff.ff1_net.bias"}


def add(state: State) -> State:
    return state | {"func.spare": torch.zeros(3)}


def narrow(state: State) -> State:
    return state | {"func.pos_ff.ff1_net.bias": torch.zeros(15)}


def flatten(state: State) -> State:
    return state | {"inject_conv.weight": state["inject_conv.weight"].squeeze(-1)}


def untie(state: State) -> State:
    return state | {"crit.out_layers.0.weight": state["crit.out_layers.0.weight"] + 1}


def poison(state: State) -> State:
    return state | {"inject_conv.bias": torch.full((24,), torch.nan)}


def no_tensor(state: State) -> State:
    return state | {"inject_conv.bias": 3}  # type: ignore[dict-item]


def shrink_vocabulary(files: Path) -> None:
    WordTokenizer(["<eos>", "w"]).save(files)


def break_config(files: Path) -> None:
    (files / "config.json").write_text("{")


def remove(files: Path) -> None:
    (files / "model.pth").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "model.pth is not a file"),
        (truncate, "damaged or not a .pth file"),
        (scribble, "damaged or not a .pth file"),
        (empty, "damaged or not a .pth file"),
        (other_zip, "damaged or not a .pth file"),
        (a_list, "must hold tensors by name, got list"),
        (rewrite(drop), "missing func.pos_ff.ff1_net.bias; extra none"),
        (rewrite(add), "missing none; extra func.spare"),
        (rewrite(narrow), "f.ff1_net.bias has shape (15,), expected (16,)"),
        (rewrite(flatten), "inject_conv.weight must end in a dimension of size 1"),
        (rewrite(untie), "crit.out_layers.0.weight differs from word_emb.emb_layers.0.weight"),
        (rewrite(poison), "not finite: injection.bias"),
        (rewrite(no_tensor), "inject_conv.bias must be a tensor, got int"),
        (shrink_vocabulary, "vocabulary has 2 entries, config n_token is 12"),
        (break_config, "config.json is not JSON"),
    ],
)
def test_damage_is_named(
    files: Path,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(files)
    assert convert(files) == 1
    assert message in capsys.readouterr().err
    assert not (files / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pth", "out"], "one of --config, --preset is needed"),
        (["a.pth", "out", "--preset", "model-ift"], "one of --vocab, --tokenizer is needed"),
        (["a.pth", "out", "--preset", "large"], "--preset must be one of"),
        (["a", "b.pth", "--to-pth", "--vocab", "v"], "--vocab does not go with --to-pth"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments, "deqlm convert")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_preset_asks_for_its_shapes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(files / "model.pth"), str(files / "out"), "--preset", "model-ift-jr"]
    assert main([*arguments, "--vocab", str(files / "vocab.txt")], "deqlm convert") == 1
    assert "does not fit the configuration: missing" in capsys.readouterr().err


def test_back_from_a_damaged_folder(
    tmp_path: Path, model: DEQLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "model", model)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert main([str(tmp_path / "model"), str(tmp_path / "a.pth"), "--to-pth"], "convert") == 1
    assert "damaged or not a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


MAKE_PUBLISHED = """
import sys, torch
from pathlib import Path
from deq_model.config import PRESETS
from deq_model.model import DEQLanguageModel
from deq_model.published import to_published
folder, config = Path(sys.argv[1]), PRESETS["model-ift-jr"]
model = DEQLanguageModel(config)
model.reset(generator=torch.Generator().manual_seed(0))
torch.save(to_published(model.state_dict(), config), folder / "model.pth")
words = ["<eos>", *(f"w{i}" for i in range(config.n_token - 1))]
(folder / "vocab.txt").write_text("".join(f"{word}\\n" for word in words))
"""
CONVERT_AND_LOAD = """
import resource, sys, time, torch
from pathlib import Path
from deq_model.checkpoint import load_checkpoint
from training.convert import main
folder = Path(sys.argv[1])
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
arguments = [str(folder / "model.pth"), str(folder / "out"), "--preset", "model-ift-jr"]
assert main([*arguments, "--vocab", str(folder / "vocab.txt")], "deqlm convert") == 0
loaded = load_checkpoint(folder / "out", device="cpu")
assert loaded.model.n_parameters() == 97_691_888  # 97,851,488 with tied projections twice
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, time.monotonic() - began)
"""


def run_python(code: str, folder: Path) -> str:
    """Runs code in a fresh interpreter, whose peak memory is then its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_published_size_converts_and_loads_quickly_in_little_memory(tmp_path: Path) -> None:
    """Peak resident memory of converting and loading, beyond that of the imports."""
    run_python(MAKE_PUBLISHED, tmp_path)
    size = (tmp_path / "model.pth").stat().st_size
    peak, seconds = map(float, run_python(CONVERT_AND_LOAD, tmp_path).split()[-2:])
    assert size > 97_691_888 * 4
    assert peak < 2.5 * size
    assert seconds < 15


def test_what_is_there_is_replaced_only_if_asked(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "out").mkdir()
    assert convert(files) == 0  # an empty folder is nobody's
    before = (files / "out" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        convert(files)
    assert f"{files / 'out'} is there already; --overwrite replaces it" in capsys.readouterr().err
    assert (files / "out" / "model.safetensors").read_bytes() == before
    with pytest.raises(SystemExit, match="2"):
        main([str(files / "out"), str(files / "model.pth"), "--to-pth"], "deqlm convert")
    assert main([str(files / "out"), str(files / "model.pth"), "--to-pth", "--overwrite"], "") == 0
