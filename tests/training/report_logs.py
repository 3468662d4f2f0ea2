"""Logs of runs, as the trainer writes them."""

import json
from pathlib import Path
from typing import Any

from training.options.data import DataOptions
from training.options.equilibrium import EquilibriumOptions
from training.options.run import RunOptions
from training.options.train import TrainOptions
from training.report.reading import RunLog
from training.report.tables import details, tables


def options(**equilibrium: Any) -> dict[str, Any]:
    """Options of a run that trains with the Jacobian's term."""
    return TrainOptions(
        data=DataOptions(train=Path("a.txt"), valid=Path("b.txt")),
        run=RunOptions(out=Path("run"), seed=7),
        equilibrium=EquilibriumOptions(jac_loss_weight=0.5, jac_loss_freq=0.4, **equilibrium),
    ).to_dict()


def step(number: int, **changes: Any) -> dict[str, Any]:
    """A line of a training step."""
    plain = {
        "event": "step",
        "step": number,
        "epoch": 0,
        "seconds": number / 2,
        "loss": 4.0 + 10 / (number + 1),
        "perplexity": 60.0,
        "nfe_forward": 8.0,
        "nfe_backward": 6.0,
        "residual": 0.007,
        "residual_backward": 0.03,
        "unconverged_forward": 0.1,
        "unconverged_backward": None,
        "jac_loss": 0.05,
        "spectral_radius": 0.9,
        "grad_norm": 0.7,
        "lr": 1e-3,
        "skipped": 0,
        "tokens_per_s": 1000.0,
    }
    return plain | changes


def valid(number: int, **changes: Any) -> dict[str, Any]:
    """A line of a validation."""
    plain = {
        "event": "valid",
        "step": number,
        "mean_nll": 4.5,
        "perplexity": 90.0 - number / 100,
        "nfe": 8.0,
        "unconverged": 25,
        "scored_tokens": 100,
        "residual_by_call": [1.0, 0.1, 0.01],
    }
    return plain | changes


def start(number: int = 0, **changes: Any) -> dict[str, Any]:
    """The line with which a run begins, or goes on."""
    return {"event": "start", "step": number, "options": options(), **changes}


BAD = {
    "event": "bad_step",
    "step": 150,
    "reason": "the loss is a <spike>",
    "action": "skip",
    "loss": 9.25,
    "residual": None,
    "grad_norm": 33.0,
}


def written(folder: Path, *events: dict[str, Any], tail: str = "") -> Path:
    """A run's folder with these lines in its log."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(event) + "\n" for event in events) + tail
    (folder / "log.jsonl").write_text(text)
    return folder


def rows(runs: list[RunLog]) -> dict[str, list[str]]:
    """Cells of all tables by the first of their row."""
    found = [*tables(runs), *details(runs)]
    return {row[0]: list(row[1:]) for table in found for row in table.rows}
