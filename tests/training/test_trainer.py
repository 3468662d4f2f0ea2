"""Runs: they learn, stop, resume to the same numbers, and say when they cannot go on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from deq_model.checkpoint import load_checkpoint
from training.errors import DataError, ResumeError
from training.state import newest_state
from training.trainer import Trainer

from .runs import course, log_of, losses, tiny, write_texts


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    write_texts(tmp_path)


def test_a_run_learns_and_leaves_its_best_model(tmp_path: Path) -> None:
    summary = Trainer(
        tiny(tmp_path, equilibrium={"pretrain_steps": 30}, optimiser={"max_steps": 40, "lr": 2e-2})
    ).run()
    assert summary.finished
    assert summary.step == 40
    out = tmp_path / "out"
    series = losses(out)
    assert len(series) == 40
    assert series[0] == pytest.approx(math.log(12), rel=0.1)
    assert sum(series[-5:]) < 0.93 * sum(series[:5])
    assert summary.best_nll == min(line["mean_nll"] for line in log_of(out, "valid"))
    assert summary.model is not None
    loaded = load_checkpoint(summary.model, device="cpu")
    assert loaded.tokenizer is not None
    assert loaded.config.tgt_len == 8
    assert "Validation perplexity per token" in (summary.model / "README.md").read_text()


EVERYTHING = {
    "model": {"dropout": 0.2, "dropatt": 0.2, "cutoffs": (4, 8), "div_val": 2},
    "data": {"tgt_len_std": 2.0},
    "optimiser": {"schedule": "plateau", "plateau_patience": 1, "lr": 0.1, "max_steps": 19},
    "equilibrium": {
        "jac_loss_increment": 0.1,
        "jac_loss_every": 7,
        "spectral_radius_every": 5,
        "spectral_radius_steps": 4,
    },
    "valid": {"every": 5},
}


@pytest.mark.parametrize(
    "cut", [11, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (8, 9, 10))]
)
def test_resuming_gives_the_same_log_and_parameters(tmp_path: Path, cut: int) -> None:
    run = {"log_every": 4}
    straight = Trainer(tiny(tmp_path, out="straight", run=run, **EVERYTHING))
    straight.run()
    first = Trainer(tiny(tmp_path, out="cut", run=run, **EVERYTHING)).run(max_steps=cut)
    assert not first.finished
    again = Trainer(tiny(tmp_path, out="cut", run=run | {"resume": True}, **EVERYTHING))
    assert again.run().finished
    assert course(tmp_path / "cut") == course(tmp_path / "straight")
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name
    assert log_of(tmp_path / "cut", "step")[-1]["lr"] < 0.1  # the plateau's state mattered


@pytest.mark.parametrize("method", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
def test_every_optimiser_resumes(tmp_path: Path, method: str) -> None:
    change = {"optimiser": {"method": method, "momentum": 0.9, "max_steps": 6}}
    Trainer(tiny(tmp_path, out="straight", **change)).run()
    Trainer(tiny(tmp_path, out="cut", **change)).run(max_steps=4)
    Trainer(tiny(tmp_path, out="cut", run={"resume": True}, **change)).run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")


VARIANTS: dict[str, dict[str, Any]] = {
    "phantom": {"equilibrium": {"gradient": "phantom", "phantom_steps": 3}},
    "states": {"equilibrium": {"n_states": 3, "gamma": 0.5}},
    "whole block": {"equilibrium": {"whole_block": True}},
    "lengths": {"data": {"tgt_len_std": 3.0}},
    "inverse root": {"optimiser": {"schedule": "inverse_root"}},
    "no clip": {"optimiser": {"clip": 0.0}},
    "decay": {"optimiser": {"weight_decay": 0.5}},
    "uniform": {"model": {"init": "uniform"}},
    "spectral norm": {"model": {"norm": "spectral_norm", "norm_clip": 0.9}},
    "picard": {"forward": {"method": "picard"}},
    "absolute": {"forward": {"stop_mode": "abs", "tol": 1e-2}},
    "anderson backward": {"backward": {"method": "anderson", "tol": 1e-1}},
}


def test_every_variant_trains_in_its_own_way(tmp_path: Path) -> None:
    courses = []
    for name, change in {"plain": {}, **VARIANTS}.items():
        equilibrium = {"pretrain_steps": 0} | change.get("equilibrium", {})
        options = tiny(tmp_path, out=name, **change | {"equilibrium": equilibrium})
        Trainer(options).run(max_steps=5)
        courses.append(losses(tmp_path / name))
        assert all(math.isfinite(loss) for loss in courses[-1]), name
    assert len({tuple(series) for series in courses}) == len(courses)


@pytest.mark.parametrize("gradient", ["ift", "phantom"])
def test_chunks_give_the_gradient_of_the_whole(tmp_path: Path, gradient: str) -> None:
    for chunks in (1, 3):
        change = EVERYTHING | {
            "equilibrium": {
                "gradient": gradient,
                "n_states": 2,
                "pretrain_steps": 4,
                "jac_loss_weight": 0.5,
                "jac_loss_freq": 0.5,
                "spectral_radius_every": 3,
            },
            "optimiser": {"batch_chunks": chunks},
            "forward": {"tol": 1e-6, "max_nfe": 40},
            "backward": {"tol": 1e-6, "max_nfe": 40},
            "valid": {},
        }
        Trainer(tiny(tmp_path, out=str(chunks), **change)).run(max_steps=7)
    whole, cut = (log_of(tmp_path / name, "step") for name in ("1", "3"))
    for name, rel in (
        ("loss", 1e-4),
        ("grad_norm", 1e-3),
        ("jac_loss", 1e-3),
        ("spectral_radius", 1e-3),
    ):
        found, expected = ([line[name] or 0.0 for line in lines] for lines in (cut, whole))
        assert found == pytest.approx(expected, rel=rel), name
    assert any(line["jac_loss"] is not None for line in whole)
    assert any(line["spectral_radius"] is not None for line in whole)


def test_the_radius_is_looked_at_as_often_as_asked(tmp_path: Path) -> None:
    change = {"equilibrium": {"spectral_radius_every": 3}}
    Trainer(tiny(tmp_path, **change)).run(max_steps=7)
    found = [line["spectral_radius"] for line in log_of(tmp_path / "out", "step")]
    assert [value is not None for value in found] == [i % 3 == 2 for i in range(7)]
    assert 0 < found[2] < 10


def test_the_weight_of_the_jacobian_grows(tmp_path: Path) -> None:
    options = tiny(
        tmp_path,
        equilibrium={"jac_loss_weight": 0.1, "jac_loss_increment": 0.2, "jac_loss_every": 5},
    )
    trainer = Trainer(options)
    weights = {step: trainer._stepper._plan(step).jac_weight for step in range(40)}
    drawn = {step: weight for step, weight in weights.items() if weight is not None}
    assert 5 < len(drawn) < 35
    assert drawn == pytest.approx({step: 0.1 + 0.2 * (step // 5) for step in drawn})


def test_what_a_measurement_tells(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, valid={"tol": 1e-5, "max_nfe": 40, "mem_len": 4})).run(max_steps=10)
    (line,) = log_of(tmp_path / "out", "valid")
    assert line["perplexity"] == pytest.approx(math.exp(line["mean_nll"]))
    assert line["unconverged"] == 0
    curve = line["residual_by_call"]
    assert curve[-1] < 1e-4 < curve[0]
    assert line["nfe"] <= len(curve) <= 40


def test_resume_without_a_state_begins(tmp_path: Path) -> None:
    summary = Trainer(tiny(tmp_path, run={"resume": True})).run(max_steps=2)
    assert summary.step == 2


def test_the_epoch_begins_again_without_memory(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path))
    per_epoch = math.ceil(trainer._streams.length / 8)
    lengths = []
    for _ in range(per_epoch + 1):
        trainer._one_step()
        lengths.append(trainer._memory.length)
    assert lengths[per_epoch - 2] == 8
    assert (trainer._progress.epoch, trainer._progress.position) == (1, 8)
    assert lengths[-1] == 8  # of the new epoch's first block alone
    for _ in range(per_epoch):
        trainer._one_step()
    assert trainer._progress.epoch == 2


def test_stop_ends_the_run_with_its_state_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny(tmp_path))
    one_step = trainer._one_step

    def step_and_stop() -> Any:
        if trainer._progress.step == 6:
            trainer.stop()
        return one_step()

    monkeypatch.setattr(trainer, "_one_step", step_and_stop)
    summary = trainer.run()
    assert (summary.finished, summary.step) == (False, 7)
    newest = newest_state(tmp_path / "out" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000007.pt"


def test_old_states_are_deleted(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, run={"save_every": 2, "keep": 3})).run(max_steps=10)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step-00000006.pt", "step-00000008.pt", "step-00000010.pt"]


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path)).run(max_steps=2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ResumeError, match=r"run\.out .* holds a run already .*run\.resume true"):
        Trainer(tiny(tmp_path))
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before


def test_pretraining_ends_when_it_should(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path, equilibrium={"pretrain_steps": 3, "pretrain_depth": 2})).run(max_steps=5)
    steps = log_of(tmp_path / "out", "step")
    assert [line["nfe_forward"] == 2 for line in steps] == [True] * 3 + [False] * 2
    assert [line["nfe_backward"] > 0 for line in steps] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(("freq", "count"), [(0.0, 0), (1.0, 6)])
def test_the_jacobian_is_estimated_as_often_as_asked(
    tmp_path: Path, freq: float, count: int
) -> None:
    Trainer(tiny(tmp_path, equilibrium={"jac_loss_freq": freq})).run(max_steps=6)
    found = [line["jac_loss"] for line in log_of(tmp_path / "out", "step")]
    assert sum(value is not None for value in found) == count


def test_the_jacobian_term_makes_it_smaller(tmp_path: Path) -> None:
    sizes = []
    for weight in (1e-6, 3.0):
        equilibrium = {"jac_loss_weight": weight, "jac_loss_freq": 1.0, "pretrain_steps": 0}
        out = f"weight-{weight}"
        Trainer(tiny(tmp_path, out=out, equilibrium=equilibrium, optimiser={"max_steps": 25})).run()
        sizes.append(log_of(tmp_path / out, "step")[-1]["jac_loss"])
    assert sizes[1] < 0.5 * sizes[0]


def test_bfloat16_products_change_little(tmp_path: Path) -> None:
    first = []
    for dtype in ("float32", "bfloat16"):
        equilibrium = {"matmul_dtype": dtype, "pretrain_steps": 0}
        Trainer(tiny(tmp_path, out=dtype, equilibrium=equilibrium)).run(max_steps=3)
        first.append(losses(tmp_path / dtype))
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=5e-2)


def test_options_of_another_run_are_refused(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path)).run(max_steps=2)
    with pytest.raises(ResumeError, match=r"optimiser.lr was 0.01 in the run to resume, got 0.5"):
        Trainer(tiny(tmp_path, run={"resume": True}, optimiser={"lr": 0.5}))


def test_a_run_can_be_made_longer_or_shorter(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path)).run(max_steps=2)
    change = {"run": {"resume": True}, "optimiser": {"max_steps": 4}}
    summary = Trainer(tiny(tmp_path, **change)).run()
    assert (summary.finished, summary.step) == (True, 4)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    Trainer(tiny(tmp_path)).run(max_steps=2)
    path = newest_state(tmp_path / "out" / "checkpoints")
    assert path is not None
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ResumeError, match=r"cannot resume from .*step-00000002.pt"):
        Trainer(tiny(tmp_path, run={"resume": True}))


def test_a_text_too_short_for_the_streams(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("the cat\n")
    with pytest.raises(DataError, match=r"at least 8 tokens for 4 streams .*got 3"):
        Trainer(tiny(tmp_path))
