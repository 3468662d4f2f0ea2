"""Models side by side: traces of solves, and what ``deqlm compare`` writes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from deq_model.checkpoint import load_checkpoint, save_checkpoint
from deq_model.solvers.options import SolverOptions
from tests.server.tiny import WORDS, save_words
from training.compare import main
from training.comparing.measure import measure_model
from training.comparing.report import comparison_table
from training.comparing.traces import band, calls_to, reaches, trace
from training.errors import OptionsError
from training.evaluating.progress import EvalProgress
from training.evaluation import BlockView, EvalOptions, evaluate
from training.options.comparison import CompareRun

FILES = {"comparison.md", "comparison.json", "comparison.svg", "comparison.png"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``soft``, ``stiff`` (attention and feed-forward say little beside z), and ``text.txt``."""
    folder = tmp_path_factory.mktemp("compared")
    save_words(folder / "soft")
    loaded = load_checkpoint(folder / "soft", device="cpu")
    with torch.no_grad():
        for parameter in loaded.model.f.parameters():
            parameter.mul_(0.3)
    save_checkpoint(folder / "stiff", loaded.model, loaded.tokenizer)
    draw = torch.randint(0, len(WORDS), (135,), generator=torch.Generator().manual_seed(2))
    words = [WORDS[i] for i in draw.tolist()]
    lines = [" ".join(words[at : at + 9]) for at in range(0, 135, 9)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def flags(models: Path, out: Path, *names: str) -> list[str]:
    given = [item for name in names for item in ("--model", str(models / name))]
    data = ["--data", str(models / "text.txt"), "--out", str(out)]
    small = ["--batch-size", "2", "--trace-blocks", "2", "--budgets", "2,20", "--threads", "1"]
    return [*given, *data, *small]


class TestTraces:
    def test_calls_are_those_of_a_solve_to_that_tolerance(self, models: Path) -> None:
        """One trace to a tight tolerance tells what solves to looser ones would take."""
        loaded = load_checkpoint(models / "soft", device="cpu", dtype=torch.float64)
        tight = SolverOptions(tol=1e-8, max_nfe=100, depth=100, restart=math.inf)
        options = EvalOptions(
            batch_size=1, tgt_len=16, mem_len=16, solver=tight, whole_block=True, radius_blocks=1
        )
        ids = torch.randint(0, 22, (40,), generator=torch.Generator().manual_seed(3))
        views: list[BlockView] = []
        exact = evaluate(loaded.model, ids, options, inspect=views.append)
        assert len(views) == 1
        assert len(exact.radius) == 1
        whole = trace(loaded.model, views[0], tight, whole_block=True)
        by_token = trace(loaded.model, views[0], tight, whole_block=False)
        length = views[0].tokens.shape[1]
        assert whole.shape[1:] == (1, 1)
        assert by_token.shape[1:] == (1, length)
        for tol in (1e-1, 1e-3, 1e-6):
            loose = dataclasses.replace(tight, tol=tol)
            again = trace(loaded.model, views[0], loose, whole_block=True)
            assert calls_to(whole, tol).tolist() == [len(again)]

    def test_a_row_is_done_when_those_before_it_are(self) -> None:
        residual = torch.tensor(
            [[[0.5, 0.01]], [[0.05, 0.5]], [[0.05, 0.05]], [[0.001, 0.2]]], dtype=torch.float64
        )
        assert calls_to(residual, 0.1).tolist() == [3.0]
        assert calls_to(residual, 0.5).tolist() == [1.0]
        assert calls_to(residual, 0.01).tolist() == [math.inf]

    def test_what_never_comes_there_counts_with_the_budget(self) -> None:
        traces = [torch.tensor([[[0.5]], [[0.05]]]), torch.tensor([[[0.5]], [[0.4]]])]
        (found,) = reaches(traces, [0.1], budget=50)
        assert (found.calls, found.share) == ((2 + 50) / 2, 0.5)

    def test_bands_go_on_at_the_last_value(self) -> None:
        found = band([torch.tensor([[[4.0]], [[1.0]]]), torch.tensor([[[8.0]]])])
        assert found.low == (4.0, 1.0)
        assert found.high == (8.0, 8.0)


def test_two_models(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(models, tmp_path / "out", "soft", "stiff"), "deqlm compare") == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert table.startswith("| | soft | stiff |\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    soft, stiff = found["models"]
    assert soft["unconverged"] == 0
    for kind in ("calls_whole_block", "calls_by_token"):
        calls = [reach["calls"] for reach in soft[kind]]
        assert calls == sorted(calls)
        assert [reach["tol"] for reach in soft[kind]] == [0.1, 0.01, 0.001, 0.0001, 1e-05]
        assert soft[kind][-1]["calls"] < stiff[kind][-1]["calls"]
    assert max(soft["spectral_radius"]) < max(stiff["spectral_radius"])
    assert [point["value"] for point in soft["budgets"]] == [2, 20]
    assert soft["budgets"][0]["unconverged_share"] == 1.0
    assert soft["nll_above_first"]["mean"] == 0.0
    difference = stiff["nll_above_first"]
    assert difference["mean"] == pytest.approx(stiff["mean_nll"] - soft["mean_nll"])
    assert difference["error"] > 0


def test_one_model_on_a_part_of_the_text(models: Path) -> None:
    run = CompareRun(
        model=(models / "soft",),
        data=models / "text.txt",
        out=Path("unused"),
        tokens=100,
        batch_size=2,
        trace_blocks=1,
        budgets=(4,),
    )
    with EvalProgress(2) as progress:
        found = measure_model(run, models / "soft", "mine", progress=progress)
    table = comparison_table(run, [found])
    assert table.startswith("| | mine |\n")
    assert "The first 100 tokens of `text.txt`, of which 98 are scored" in table
    assert "same tokens" not in table
    assert "| after 4 calls" in table
    other = dataclasses.replace(found, name="other", token_ids=found.token_ids + 1)
    row = "| loss against mine, same tokens | – | other vocabulary |"
    assert row in comparison_table(run, [found, other])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ()}, "model must name at least one"),
        ({"name": ("a",)}, "name must be given once for each of the 2 models, got 1"),
        ({"name": ("a", "a")}, "name must tell the models apart, got 'a' twice"),
        ({"budgets": (4, 0)}, "budgets must be whole numbers of at least 1, got 0"),
        ({"budgets": ()}, "budgets must be at least one"),
        ({"tol": 0.0}, "tol must be a finite number above 0"),
        ({"trace_blocks": 0}, "trace_blocks must be at least 1, got 0"),
    ],
)
def test_impossible_options(changes: dict[str, object], message: str) -> None:
    values = {"model": (Path("a"), Path("b")), "data": Path("t"), "out": Path("o"), **changes}
    with pytest.raises(OptionsError, match=message):
        CompareRun(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a", "x/b"], ("a", "b")),
        (["runs/a/model", "runs/b/model"], ("a", "b")),
        (["a/model"], ("a",)),
        (["runs/a/model", "runs/b"], ("a", "b")),
        (["x/a/model", "y/a/model", "x/b/model"], ("x/a", "y/a", "x/b")),
        (["a/model", "a/model"], ("a (1)", "a (2)")),
        (["a", "a/model", "b"], ("a (1)", "a (2)", "b")),
    ],
)
def test_names_of_models(paths: list[str], names: tuple[str, ...]) -> None:
    run = CompareRun(model=tuple(map(Path, paths)), data=Path("t"), out=Path("o"))
    assert run.names == names


def test_a_checkpoint_that_is_not_there(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(models, tmp_path / "out", "none"), "deqlm compare") == 1
    assert "is not a folder" in capsys.readouterr().err
