"""What a run tells while it goes: a line on the terminal, lines of JSON in a file."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.step import StepReport


class JsonLog:
    """Appends one JSON object a line; each is on disk when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Ends the log."""
        self._file.close()


class Averages:
    """Means over the steps since they were last taken."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []
        self._began = time.monotonic()

    def add(self, report: StepReport) -> None:
        """Counts a step."""
        self._reports.append(report)

    def take(self) -> dict[str, Any]:
        """The means as JSON-ready values; counting starts again."""
        reports, elapsed = self._reports, time.monotonic() - self._began
        self._reports, self._began = [], time.monotonic()
        sound = [report for report in reports if not report.skipped] or reports
        loss = _mean([report.loss for report in sound])
        jacobian = [report.jac_loss for report in sound if report.jac_loss is not None]
        return {
            "loss": _number(loss),
            "perplexity": _number(math.exp(min(loss, 50.0))),
            "nfe_forward": _mean([report.nfe_forward for report in reports]),
            "nfe_backward": _mean([report.nfe_backward for report in reports]),
            "residual": _number(_mean([report.residual for report in reports])),
            "jac_loss": _number(_mean(jacobian)) if jacobian else None,
            "grad_norm": _number(_mean([report.grad_norm for report in reports])),
            "lr": reports[-1].lr,
            "skipped": sum(report.skipped for report in reports),
            "tokens_per_s": sum(report.tokens for report in reports) / max(elapsed, 1e-9),
        }


class ProgressBar:
    """A bar on a terminal; nothing where standard error is none."""

    def __init__(self, *, total: int, done: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Moves to a step."""
        self._progress.update(self._task, completed=step)

    def describe(self, values: dict[str, Any]) -> None:
        """Shows averages."""
        text = (
            f"loss {values['loss'] or math.nan:.3f} ppl {values['perplexity'] or math.nan:.1f} "
            f"nfe {values['nfe_forward']:.1f}/{values['nfe_backward']:.1f} "
            f"residual {values['residual'] or math.nan:.1e} {values['tokens_per_s']:.0f} tok/s"
        )
        self._progress.update(self._task, description=text)


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> float | None:
    """JSON has no word for infinities and nan."""
    return value if math.isfinite(value) else None
