"""A tiny run that the training tests share."""

import json
from pathlib import Path
from typing import Any

import yaml

from deq_model.solvers.options import SolverOptions
from training.options.data import DataOptions
from training.options.equilibrium import EquilibriumOptions
from training.options.model import ModelOptions
from training.options.optimiser import OptimiserOptions
from training.options.run import GuardOptions, RunOptions, ValidationOptions
from training.options.train import TrainOptions

LINES = ["the cat sat on the mat", "a dog ran after the cat", "the dog sat", "and a cat ran on"]


def write_texts(folder: Path) -> None:
    """``train.txt`` and ``valid.txt`` of a few hundred words."""
    lines = [LINES[(i * i + i // 3) % 4] for i in range(80)]
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    (folder / "valid.txt").write_text("\n".join(lines[:20]) + "\n")


def tiny(folder: Path, *, out: str = "out", **changes: Any) -> TrainOptions:
    """Options of a run that takes a second; ``changes`` by group."""

    def group(name: str, **defaults: Any) -> dict[str, Any]:
        return defaults | changes.get(name, {})

    return TrainOptions(
        data=DataOptions(
            **group(
                "data",
                train=folder / "train.txt",
                valid=folder / "valid.txt",
                tokenizer_kind="word",
                vocab_size=0,
                batch_size=4,
            )
        ),
        run=RunOptions(**group("run", out=folder / out, save_every=100, log_every=1)),
        model=ModelOptions(
            **group("model", d_model=16, n_head=2, d_inner=32, tgt_len=8, mem_len=8, init_std=0.1)
        ),
        optimiser=OptimiserOptions(
            **group("optimiser", lr=1e-2, warmup_steps=3, max_steps=20, clip=1.0)
        ),
        equilibrium=EquilibriumOptions(
            **group("equilibrium", jac_loss_weight=0.1, jac_loss_freq=0.5, pretrain_steps=4)
        ),
        valid=ValidationOptions(**group("valid", every=10)),
        guard=GuardOptions(**group("guard")),
        forward=SolverOptions(**group("forward", tol=1e-3, max_nfe=20)),
        backward=SolverOptions(**group("backward", tol=1e-3, max_nfe=20)),
    )


def config_file(options: TrainOptions, path: Path) -> Path:
    """A YAML file of a run, for ``--config``."""
    path.write_text(yaml.safe_dump(options.to_dict()))
    return path


def log_of(out: Path, event: str) -> list[dict[str, Any]]:
    """The lines of a run's log about one kind of event."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(out: Path) -> list[float]:
    """Of the steps, one a line of the log."""
    return [line["loss"] for line in log_of(out, "step")]


def course(out: Path) -> list[dict[str, Any]]:
    """What the log tells of steps and measurements, times apart."""
    times = {"seconds", "tokens_per_s"}
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in times}
        for line in lines
        if line["event"] in ("step", "valid")
    ]
