"""The state of a run between two steps, on disk."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from deq_model.files import write_whole
from deq_model.memory import Memory
from training.errors import ResumeError
from training.options.train import TrainOptions

FORMAT = 2
"""Version of what a state holds; others are refused."""

_NAME = re.compile(r"step-(\d{8,})\.pt")
_HALF_WRITTEN = re.compile(r"\.step-\d+\.pt\.\d+\.tmp")
_FREE_GROUPS = {"run", "guard"}
_FREE = {"optimiser.max_steps", "optimiser.batch_chunks"}
_BOUND = {"run.seed"}
_CHANGEABLE = "run.* but run.seed, guard.*, optimiser.max_steps and optimiser.batch_chunks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        step: steps done.
        position: where in its stream the next block begins; 0 begins an epoch.
        epoch: epochs done.
        seconds: that the run has taken.
    """

    step: int = 0
    position: int = 0
    epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All that a step changes beside the parameters and the optimiser's memory of them.

    Attributes:
        progress: where the run is.
        memory: of the blocks before.
        schedule: the schedule's state.
        guard: the guard's.
        generator: state of the source of random numbers.
        reports: of the steps since the last line of the log, as plain values.
        best_nll: validation loss of the best model on disk, inf if there is none.
    """

    progress: Progress
    memory: Memory
    schedule: dict[str, Any]
    guard: dict[str, Any]
    generator: torch.Tensor
    reports: tuple[dict[str, Any], ...]
    best_nll: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that the next step depends on, and what the log still has to tell.

    Attributes:
        point: where the run is; its memory is that of all streams.
        model: the model's state dictionary.
        optimiser: the optimiser's.
        options: of the run, as plain values.
        vocabulary: fingerprint of the tokenizer.
    """

    point: Point
    model: dict[str, Any]
    optimiser: dict[str, Any]
    options: dict[str, Any]
    vocabulary: str


def save_state(folder: Path, state: RunState, *, keep: int) -> Path:
    """Writes ``step-N.pt`` whole, then deletes all but the ``keep`` newest.

    States of later steps are deleted as well: a run that saves has none, unless it went back.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():  # of a process that was killed while it wrote
        if _HALF_WRITTEN.fullmatch(left.name):
            left.unlink()
    values = _values(state) | {"format": FORMAT, "point": _values(state.point)}
    values["point"]["progress"] = _values(state.point.progress)
    values["point"]["memory"] = _values(state.point.memory)
    path = folder / f"step-{state.point.progress.step:08d}.pt"
    write_whole(path, lambda temporary: _write(values, temporary))
    _sync(folder)  # the new name is on the disk before old ones go
    saved = _saved(folder)
    here = saved.index(path) + 1
    for other in saved[: max(0, here - keep)] + saved[here:]:
        other.unlink()
    return path


def _values(of: Any) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__slots__}


def newest_state(folder: Path) -> Path | None:
    """The file of the latest step, or None."""
    saved = _saved(folder)
    return saved[-1] if saved else None


def load_state(path: Path, *, device: torch.device) -> RunState:
    """Reads a state; runs no code that the file may hold.

    Raises:
        ResumeError: it is damaged, or of another version.
    """
    try:
        values = torch.load(path, map_location=device, weights_only=True)
        found = values.pop("format", 1)
    # Damage shows as nearly any error, depending on which byte it hit.
    except Exception as error:
        raise _damaged(path, error) from error
    if found != FORMAT:
        raise ResumeError(
            f"cannot resume from {path}: format must be {FORMAT}, got {found}; use the version of "
            "deqlm that wrote it, or train into another folder"
        )
    try:
        point = values["point"]
        point["memory"] = Memory(**point["memory"])
        point["progress"] = Progress(**point["progress"])
        point["generator"] = point["generator"].cpu()
        values["point"] = Point(**point)
        return RunState(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def check_vocabulary(state: RunState, vocabulary: str) -> None:
    """Raises ResumeError unless the tokenizer's fingerprint is that of the run."""
    if state.vocabulary != vocabulary:
        raise ResumeError(
            f"the vocabulary's fingerprint was {state.vocabulary} in the run to resume, got "
            f"{vocabulary}; give it the tokenizer it began with, or train into another folder"
        )


def check_options(state: RunState, options: TrainOptions) -> None:
    """Raises ResumeError unless all options that must not change are those of the run."""
    for name, group in options.to_dict().items():
        for key, value in group.items():
            field = f"{name}.{key}"
            free = (name in _FREE_GROUPS or field in _FREE) and field not in _BOUND
            was = state.options.get(name, {}).get(key)
            if not free and was != value:
                raise ResumeError(
                    f"{field} was {was} in the run to resume, got {value}; only {_CHANGEABLE} may "
                    "change: set it back, or train into another folder"
                )


def _write(values: dict[str, Any], path: Path) -> None:
    """Saves as torch does; its own writer would hide what is wrong with the disk."""
    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(values, cast(IO[bytes], watched))
        except RuntimeError as error:
            raise watched.error or OSError(str(error)) from error


class _Watched:
    """A file that remembers why it could not be written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """As of a file."""
        try:
            written: int = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        return written

    def flush(self) -> None:
        """As of a file."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(path: Path, error: Exception) -> ResumeError:
    return ResumeError(
        f"cannot resume from {path}, which is damaged: {error}; delete it to go on from the state "
        "before it"
    )


def _saved(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))
