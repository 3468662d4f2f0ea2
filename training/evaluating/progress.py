"""How far a long evaluation has come: a bar on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOG = logging.getLogger(__name__)
EVERY_S = 30.0
"""Between lines where standard error is no terminal."""


class EvalProgress:
    """Progress over stages of one command, each a pass over the text."""

    def __init__(self, stages: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._on_terminal = console.is_terminal
        self._stages, self._stage, self._name = stages, 0, ""
        self._clock, self._began = clock, clock()
        self._spoke = self._began
        self._task = self._bar.add_task("", total=float(stages))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def stage(self, name: str) -> Callable[[int, int], None]:
        """Begins the next stage; returns what ``evaluate`` is to call."""
        self._stage, self._name = self._stage + 1, name
        self._bar.update(self._task, description=f"{name} ({self._stage}/{self._stages})")
        return self._advance

    def _advance(self, done: int, total: int) -> None:
        whole = self._stage - 1 + done / total
        self._bar.update(self._task, completed=whole)
        now = self._clock()
        if self._on_terminal or now - self._spoke < EVERY_S:
            return
        self._spoke = now
        elapsed = now - self._began
        _LOG.info(
            "%s (%d/%d): %d %%, %.0f s so far, about %.0f s left",
            self._name,
            self._stage,
            self._stages,
            100 * done // total,
            elapsed,
            elapsed / whole * (self._stages - whole),
        )
