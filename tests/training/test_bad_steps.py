"""Steps that are not finite, or spikes: skipped, warned of, or the end of the run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import DivergedError
from training.passes import Objective
from training.trainer import Trainer

from .runs import log_of, losses, tiny, write_texts


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    write_texts(tmp_path)


def spoil(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, factors: dict[int, float]) -> None:
    """Multiplies the loss that is differentiated in some steps, counted from 0."""
    plain = Objective.forward

    def spoiled(self: Objective, *arguments: Any) -> Any:
        loss, done = plain(self, *arguments)
        factor = factors.get(trainer._progress.step, 1.0)
        figures = dataclasses.replace(done.figures, loss=done.figures.loss * factor)
        return loss * factor, dataclasses.replace(done, figures=figures)

    monkeypatch.setattr(Objective, "forward", spoiled)


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.named_parameters()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], value) for name, value in expected.items())


def test_too_many_bad_steps_end_the_run_at_the_last_sound_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny(tmp_path, guard={"max_skipped": 3}, run={"save_every": 4}))
    trainer.run(max_steps=2)
    before = parameters(trainer)
    spoil(monkeypatch, trainer, {step: math.nan for step in range(2, 9)})
    with pytest.raises(DivergedError, match=r"step 5: 3 steps .*after step 2.*optimiser\.lr"):
        trainer.run()
    assert [line["skipped"] for line in log_of(tmp_path / "out", "step")] == [0, 0, 1, 1]
    bad = log_of(tmp_path / "out", "bad_step")
    assert [(line["step"], line["action"]) for line in bad] == [(i, "skip") for i in (3, 4, 5)]
    assert bad[0]["reason"] == "the loss is not finite"
    assert {"loss": None, "grad_norm": None}.items() <= bad[0].items()
    assert same(parameters(trainer), before)
    (path,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert path.name == "step-00000002.pt"
    monkeypatch.undo()
    assert Trainer(tiny(tmp_path, run={"resume": True, "save_every": 4})).run().finished
    assert log_of(tmp_path / "out", "bad_step") == []  # what came after the state is undone
    Trainer(tiny(tmp_path, out="straight", run={"save_every": 4})).run()
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")


def test_one_bad_step_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(tmp_path, guard={"max_skipped": 2}))
    spoil(monkeypatch, trainer, {2: math.nan, 4: math.inf})
    assert trainer.run(max_steps=8).step == 8
    skipped = [line["skipped"] for line in log_of(tmp_path / "out", "step")]
    assert skipped == [0, 0, 1, 0, 1, 0, 0, 0]


def test_a_skipped_step_empties_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(tmp_path))
    spoil(monkeypatch, trainer, {1: math.nan})
    assert trainer._one_step().memory.length == 8
    before = parameters(trainer)
    assert trainer._one_step().memory.length == 0
    assert same(parameters(trainer), before)
    assert trainer._one_step().memory.length == 8


def spiking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> Trainer:
    """A run whose 13th step is a spike."""
    trainer = Trainer(tiny(tmp_path, guard={"action": action}, equilibrium={"pretrain_steps": 0}))
    spoil(monkeypatch, trainer, {12: 100.0})
    return trainer


def test_a_spike_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = spiking(tmp_path, monkeypatch, "skip")
    trainer.run()
    (line,) = log_of(tmp_path / "out", "bad_step")
    assert (line["step"], line["action"]) == (13, "skip")
    assert line["reason"].startswith("the loss is a spike")
    assert line["loss"] > 50
    assert sum(line["skipped"] for line in log_of(tmp_path / "out", "step")) == 1


def test_a_spike_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = spiking(tmp_path, monkeypatch, "warn")
    trainer.run()
    (line,) = log_of(tmp_path / "out", "bad_step")
    assert line["action"] == "warn"
    assert sum(line["skipped"] for line in log_of(tmp_path / "out", "step")) == 0
    assert "step 13: the loss is a spike" in caplog.text


def test_a_spike_stops_the_run_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = spiking(tmp_path, monkeypatch, "stop")
    with pytest.raises(DivergedError, match=r"step 13: the loss is a spike.*after step 12"):
        trainer.run()
    monkeypatch.undo()
    for out, resume in (("out", True), ("straight", False)):
        change = {"equilibrium": {"pretrain_steps": 0}, "run": {"resume": resume}}
        Trainer(tiny(tmp_path, out=out, **change)).run()
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")


def test_a_solver_that_diverges_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    equilibrium = {"pretrain_steps": 3}
    Trainer(tiny(tmp_path, guard={"residual": 1e-12}, equilibrium=equilibrium)).run(max_steps=5)
    bad = log_of(tmp_path / "out", "bad_step")
    assert [line["step"] for line in bad] == [4, 5]
    assert "the forward solver diverged: mean residual" in bad[0]["reason"]


def test_a_memory_that_is_not_finite_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny(tmp_path))
    plain = Objective.forward

    def broken(self: Objective, *arguments: Any) -> Any:
        loss, done = plain(self, *arguments)
        done.memory.z_hist[0, 0, 0] = torch.inf
        return loss, done

    monkeypatch.setattr(Objective, "forward", broken)
    taken = trainer._one_step()
    assert taken.verdict.applies
    assert taken.memory.length == 0
