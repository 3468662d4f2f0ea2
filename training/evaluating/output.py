"""Files that an evaluation writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deq_model.files import write_whole
from training.errors import OptionsError
from training.evaluating.report import EvalReport


def open_folder(path: Path, *, name: str = "out") -> None:
    """Makes a folder, and proves that it can be written to before any work is done.

    Raises:
        OptionsError: it cannot.
    """
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OptionsError(
            f"{name} must be a folder that can be made and written to, got {path}: {error.strerror}"
        ) from None


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures with a line for each."""
    text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_per_token(path: Path, report: EvalReport) -> None:
    """What is known of every target, each array ``(streams, positions)``.

    ``nll`` in nats, ``residual`` and ``status`` (a ``SolverStatus``) of the state it was predicted
    from, ``bytes`` of UTF-8 that it adds to the text.
    """
    result = report.result
    arrays = {
        "nll": result.nll.numpy(),
        "residual": result.residual.float().numpy(),
        "status": result.status.numpy().astype(np.int8),
        "bytes": report.size[:, : result.nll.shape[1]].numpy().astype(np.int32),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would add .npz to a name
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_whole(path, write)
