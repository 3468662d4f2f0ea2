"""What a run tells while it goes: log, TensorBoard, terminal; only rank 0 tells anything."""

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from training.errors import ResumeError
from training.log import JsonLog, truncate_log
from training.options.train import TrainOptions
from training.progress import ProgressBar
from training.tensorboard import FOLDER, TensorBoard, open_board

_LOG = logging.getLogger(__name__)
LOG_FILE = "log.jsonl"


class Journal:
    """The log, the bar, and messages about what went wrong. Use as a context."""

    def __init__(self, options: TrainOptions, *, step: int, silent: bool) -> None:
        """Cuts off what the log tells of later steps; writes nothing yet.

        Raises:
            ResumeError: the log is there and cannot be cut.
        """
        self._options, self._silent = options, silent
        self._log: JsonLog | None = None
        self._board: TensorBoard | None = None
        self._bar: ProgressBar | None = None
        self._step = step
        self._closing = ExitStack()
        path = options.run.out / LOG_FILE
        if silent:
            return
        try:
            truncate_log(path, step)
        except OSError as error:
            raise ResumeError(f"cannot cut {path} after step {step}: {error.strerror}") from None

    def __enter__(self) -> Self:
        if not self._silent:
            self._log = JsonLog(self._options.run.out / LOG_FILE)
            self._closing.callback(self._log.close)
            self._board = open_board(
                self._options.run.tensorboard, self._options.run.out / FOLDER, step=self._step
            )
            if self._board is not None:
                self._closing.callback(self._board.close)
            total = self._options.optimiser.max_steps
            self._bar = self._closing.enter_context(ProgressBar(total=total, done=self._step))
            self._write("start", step=self._step, options=self._options.to_dict())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def advance(self, step: int) -> None:
        """A step was made."""
        if self._bar is not None:
            self._bar.advance(step)

    def steps(self, **values: Any) -> None:
        """Means over some steps."""
        self._write("step", **values)
        if self._bar is not None:
            self._bar.describe(values)

    def measuring(self) -> None:
        """A measurement on the validation text begins."""
        if self._bar is not None:
            self._bar.measuring()

    def valid(self, **values: Any) -> None:
        """A measurement on the validation text."""
        self._write("valid", **values)
        if self._bar is not None:
            self._bar.validated(values)

    def bad_step(self, **values: Any) -> None:
        """A step that the guard does not call sound."""
        self._write("bad_step", **values)
        if self._bar is not None:
            self._bar.bad_step(values)
        if not self._silent:
            _LOG.warning(
                "step %d: %s (loss %.4g, residual %.3g, norm of the gradient %.3g): %s",
                *(values[name] for name in ("step", "reason", "loss", "residual", "grad_norm")),
                values["action"],
            )

    def unsaved(self, *, step: int, what: str, error: Exception) -> None:
        """Something could not be written; the run goes on."""
        self._write("unsaved", step=step, what=what, error=str(error))
        _LOG.warning("step %d: the %s cannot be written: %s; the run goes on", step, what, error)

    def flush(self) -> None:
        """Has all lines of the log on the disk. Raises OSError if some cannot be written."""
        if self._log is not None:
            self._log.flush()

    def _write(self, event: str, **values: Any) -> None:
        if self._log is not None:
            self._log.write(event, **values)
        if self._board is not None:
            self._board.write(event, **values)
