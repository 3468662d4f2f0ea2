"""TensorBoard's event files of a run, beside its log and with the same values.

The package is optional: the extra ``train`` has it, and it is loaded when a board is opened. Its
own writer has a thread, where an error of the disk cannot be caught; so only its formats are used.
"""

import io
import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.appending import RecordFile
from training.errors import OptionsError
from training.options.run import Switch

_LOG = logging.getLogger(__name__)
FOLDER = "tensorboard"
_SOLVER = (
    "nfe_forward",
    "nfe_backward",
    "residual",
    "residual_backward",
    "unconverged_forward",
    "unconverged_backward",
    "spectral_radius",
)


def open_board(switch: Switch, folder: Path, *, step: int) -> "TensorBoard | None":
    """The board of a run; None where it is off, or auto without the package.

    Args:
        switch: ``run.tensorboard``.
        folder: for the event files; made if it is not there.
        step: steps done: what was written there of later ones is purged.

    Raises:
        OptionsError: it is on, and the package is not installed; the folder cannot be written.
    """
    if switch == "off":
        return None
    try:
        import torch.utils.tensorboard  # noqa: F401  # checks that the package is there and new
    except ImportError as error:
        if switch == "auto":
            _LOG.debug("no event files: the package tensorboard is not installed")
            return None
        raise OptionsError(
            "run.tensorboard = on needs the package tensorboard, which is not installed; "
            "the extra train has it: pip install 'deqlm[train]'; or set run.tensorboard to auto "
            "or off"
        ) from error
    try:
        return TensorBoard(folder, step=step)
    except OSError as error:
        raise OptionsError(
            f"run.tensorboard cannot be {switch}: {folder} cannot be written: {error.strerror}; "
            "set it to off"
        ) from error


class TensorBoard:
    """Takes the events of the log.

    What cannot be written, as on a full disk, is reported once and left out; no half record stays.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # names in the order of their times
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}"
        self._path = folder / name
        self._file = RecordFile(self._path)
        self._failing = False
        self._put(file_version="brain.Event:2")
        self._put(step=step + 1, session_log=_beginning())

    def write(self, event: str, **values: Any) -> None:
        """Adds an event of the log: ``start``, ``step``, ``valid`` or ``bad_step``."""
        for summary in _summaries(event, values):
            self._put(step=values.get("step", 0), summary=summary)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _put(self, **values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **values).SerializeToString())
        error = self._file.append(record.getvalue())
        if error is not None and not self._failing:
            _LOG.warning("%s lacks values: %s", self._path, error.strerror)
        self._failing = error is not None


def _beginning() -> Any:
    """The mark at which a reader drops what it has of this step and later ones."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    return SessionLog(status=SessionLog.START)


def _summaries(event: str, values: Mapping[str, Any]) -> Iterator[Any]:
    from torch.utils.tensorboard.summary import scalar, text

    if event == "start":
        yield from _options(values.get("options", {}))
    elif event == "bad_step":
        yield text("bad_step", str(values.get("reason", "unknown")))
    for name, value in values.items():
        tag = _tag(event, name)
        if tag is not None and isinstance(value, int | float):
            yield scalar(tag, value)


def _tag(event: str, name: str) -> str | None:
    """The tag of a value; None for what is no curve."""
    if name in ("step", "epoch", "seconds"):
        return None
    if event == "valid":
        return f"valid/{'loss' if name == 'mean_nll' else name}"
    if event == "step":
        return f"{'solver' if name in _SOLVER else 'train'}/{name}"
    return None


def _options(options: Mapping[str, Any]) -> Iterator[Any]:
    """The options as a text, and as hyperparameters to compare runs by."""
    from torch.utils.tensorboard.summary import hparams, text

    yield text("options", "    " + json.dumps(options, indent=1).replace("\n", "\n    "))
    flat = {
        f"{group}.{name}": value if isinstance(value, bool | int | float | str) else str(value)
        for group, values in options.items()
        for name, value in values.items()
    }
    yield from hparams(flat, {"valid/perplexity": 0.0})
