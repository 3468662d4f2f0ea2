"""A tiny run that the training tests share."""

from pathlib import Path
from typing import Any

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
        forward=SolverOptions(tol=1e-3, max_nfe=20),
        backward=SolverOptions(tol=1e-3, max_nfe=20),
    )
