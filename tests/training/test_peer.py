"""Checkpoints of the published implementation, evaluated as it does: the same values per token."""

import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deq_model.checkpoint import LoadedCheckpoint, load_checkpoint
from deq_model.solvers.options import SolverOptions
from training.cli import eval_main
from training.data import read_tokens
from training.evaluation import EvalOptions, evaluate
from training.options.evaluation import EvalRun

PEER = Path(__file__).parent.parent / "data" / "peer"
BATCH = 8
SETTINGS = [
    pytest.param(name, record, id=f"{name}-mem{record['mem_len']}-tgt{record['tgt_len']}")
    for name in ("ift", "jr")
    for record in json.loads((PEER / name / "expected.json").read_text())
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = target = tmp_path_factory.mktemp(name)
            (target / "config.json").write_bytes((PEER / name / "config.json").read_bytes())
            (target / "vocab.txt").write_bytes(unpacked(PEER / "vocab.txt.xz"))
            weights = unpacked(PEER / name / "model.safetensors.xz")
            (target / "model.safetensors").write_bytes(weights)
        return made[name]

    return make


def unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def expected_nll(name: str, record: dict[str, Any]) -> torch.Tensor:
    with np.load(PEER / name / "expected_nll.npz") as file:
        nll = file[f"nll_mem{record['mem_len']}_tgt{record['tgt_len']}"]
    return torch.from_numpy(nll).double()


def flags(folder: Path, record: dict[str, Any]) -> list[str]:
    return [
        *("--model", str(folder), "--data", str(PEER / "test.txt.xz"), "--json"),
        *("--mem-len", str(record["mem_len"]), "--tgt-len", str(record["tgt_len"])),
        *("--batch-size", str(record["batch_size"])),
        *("--tol", str(record["tol"]), "--max-nfe", str(record["max_iter"])),
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "record"), SETTINGS)
def test_the_whole_text(
    folder: Callable[[str], Path],
    name: str,
    record: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tmp_path / "nll.npz"
    assert eval_main([*flags(folder(name), record), "--per-token", str(kept)], "deqlm eval") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scored_tokens"] == record["scored_tokens"]
    assert report["unconverged"] == 0
    assert report["perplexity"] == pytest.approx(record["perplexity"], rel=2e-5)
    assert report["mean_nll"] == pytest.approx(record["mean_nll"], abs=2e-6)
    nll = torch.from_numpy(np.load(io.BytesIO(kept.read_bytes()))["nll"])
    assert float((nll - expected_nll(name, record)).abs().mean()) <= 1e-5


def test_the_command_on_the_first_blocks(
    folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = (r for r in (p.values[1] for p in SETTINGS[1:]) if r["tgt_len"] == 32)
    kept = tmp_path / "nll.npz"
    arguments = [*flags(folder("jr"), record), "--max-blocks", "2", "--per-token", str(kept)]
    assert eval_main(arguments, "deqlm eval") == 0
    report = json.loads(capsys.readouterr().out)
    expected = expected_nll("jr", record)[:, :64]
    assert report["scored_tokens"] == expected.numel()
    assert report["mean_nll"] == pytest.approx(float(expected.mean()), abs=2e-6)
    nll = torch.from_numpy(np.load(io.BytesIO(kept.read_bytes()))["nll"])
    assert float((nll - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize(("name", "n_stream"), [("ift", 3), ("jr", 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_first_block(
    folder: Callable[[str], Path], name: str, n_stream: int, dtype: torch.dtype
) -> None:
    """Of some streams: the stiff checkpoint's others need hundreds of calls."""
    loaded = load_checkpoint(folder(name), device="cpu", dtype=dtype)
    tol = 1e-6 if dtype == torch.float64 else 1e-4
    options = EvalOptions(
        batch_size=n_stream,
        tgt_len=64,
        mem_len=64,
        solver=EvalRun(model=Path(), data=Path(), tol=tol, max_nfe=150).solver(),
        whole_block=True,
        max_blocks=1,
    )
    result = evaluate(loaded.model, first_streams(loaded, n_stream), options)
    assert result.unconverged == 0
    expected = expected_nll(name, {"mem_len": 64, "tgt_len": 64})[:n_stream, :64]
    difference = (result.nll - expected).abs()
    assert float(difference.mean()) <= (1e-5 if dtype == torch.float64 else 1e-3)


def first_streams(loaded: LoadedCheckpoint, n_stream: int) -> torch.Tensor:
    """The tokens that make the first of the eight streams when cut in ``n_stream``."""
    assert loaded.tokenizer is not None
    ids = read_tokens(PEER / "test.txt.xz", loaded.tokenizer).ids
    return ids[: n_stream * (len(ids) // BATCH)]


def test_token_by_token_agrees_where_the_fixed_point_is_easy(
    folder: Callable[[str], Path],
) -> None:
    loaded = load_checkpoint(folder("jr"), device="cpu")
    options = EvalOptions(
        batch_size=3,
        tgt_len=64,
        mem_len=64,
        solver=SolverOptions(tol=1e-3, max_nfe=100),
        max_blocks=1,
    )
    result = evaluate(loaded.model, first_streams(loaded, 3), options)
    expected = expected_nll("jr", {"mem_len": 64, "tgt_len": 64})[:3, :64]
    assert result.unconverged == 0
    assert float((result.nll - expected).abs().mean()) <= 1e-3
