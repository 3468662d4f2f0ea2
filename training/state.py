"""The state of a run between two steps, on disk."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deq_model.checkpoint import write_whole
from deq_model.memory import Memory
from training.errors import ResumeError

_NAME = re.compile(r"step-(\d{8})\.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that the next step depends on.

    Attributes:
        step: steps done.
        position: where in its stream the next block begins; 0 begins an epoch.
        epoch: epochs done.
        skipped: steps in a row without a finite loss.
        best_nll: lowest validation loss so far, inf if there is none.
        seconds: that the run has taken.
        memory: of the blocks before.
        model: the model's state dictionary.
        optimiser: the optimiser's.
        generator: state of the source of random numbers.
        options: of the run, as plain values.
    """

    step: int
    position: int
    epoch: int
    skipped: int
    best_nll: float
    seconds: float
    memory: Memory
    model: dict[str, Any]
    optimiser: dict[str, Any]
    generator: torch.Tensor
    options: dict[str, Any]


def save_state(folder: Path, state: RunState, *, keep: int) -> Path:
    """Writes ``step-N.pt`` and deletes all but the ``keep`` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(state, name) for name in RunState.__slots__}
    values["memory"] = {"z_hist": state.memory.z_hist, "u_hist": state.memory.u_hist}
    path = folder / f"step-{state.step:08d}.pt"
    write_whole(path, lambda temporary: torch.save(values, temporary))
    for old in _saved(folder)[:-keep]:
        old.unlink()
    return path


def newest_state(folder: Path) -> Path | None:
    """The file of the latest step, or None."""
    saved = _saved(folder)
    return saved[-1] if saved else None


def load_state(path: Path, *, device: torch.device) -> RunState:
    """Reads a state; runs no code that the file may hold. Raises ResumeError."""
    try:
        values = torch.load(path, map_location=device, weights_only=True)
        values["memory"] = Memory(**values["memory"])
        values["generator"] = values["generator"].cpu()
        return RunState(**values)
    # Damage shows as nearly any error, depending on which byte it hit.
    except Exception as error:
        raise ResumeError(f"cannot resume from {path}: {error}") from error


def _saved(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
