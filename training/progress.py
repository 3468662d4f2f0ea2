"""What a run shows while it goes: two lines on a terminal, now and then one in a file."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from training.terminal import can_repaint, logging_through, open_console, write_line

_FRAME_S = 0.2
"""Least time between two pictures of the bar."""
_LINE_S = 30.0
_LINE_SHARE = 0.05
"""Where there is no terminal, a line comes after so many seconds or such a share of the steps."""
_SPEED_S = 60.0
"""The time left is told from the speed over so many seconds."""


@contextmanager
def stage(text: str, *, stream: TextIO | None = None) -> Iterator[None]:
    """Shows what is being done before the first step: a spinner, or a line where none can turn.

    Args:
        text: such as "reading the data".
        stream: to show it on; standard error if None.
    """
    console = open_console(stream)
    if not can_repaint(console):
        write_line(console, f"{text} ...")
        yield
        return
    with logging_through(console), console.status(text + " ..."):
        yield


class ProgressBar:
    """A run's course: a bar with figures on a terminal, else plain lines.

    Use as a context; all methods do nothing that a run depends on.
    """

    def __init__(self, *, total: int, done: int, stream: TextIO | None = None) -> None:
        """Shows nothing yet.

        Args:
            total: steps of the run.
            done: those before this process began.
            stream: to show it on; standard error if None.
        """
        self._console = open_console(stream)
        self._view = _View(total=total, done=done, ascii_only=self._console.options.ascii_only)
        self._live = _SteadyLive(self._view, self._console) if can_repaint(self._console) else None
        self._through = logging_through(self._console)
        self._shown_at, self._shown_step = -math.inf, done
        self._line_at, self._line_step = -math.inf, done

    def __enter__(self) -> Self:
        if self._live is None:
            write_line(self._console, self._view.line("the first step comes ..."))
        else:
            self._through.__enter__()
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._through.__exit__(None, None, None)
        elif self._line_step != self._view.step:
            write_line(self._console, self._view.line())

    def advance(self, step: int) -> None:
        """Moves to a number of steps done."""
        self._view.advance(step)
        if self._live is not None and self._view.now - self._shown_at >= _FRAME_S:
            self._show()

    def describe(self, values: Mapping[str, Any]) -> None:
        """Shows averages, as ``Averages.take`` gives them."""
        self._view.describe(values)
        if self._live is not None:
            self._show()
        elif self._line_is_due():
            self._write_line()

    def validated(self, values: Mapping[str, Any]) -> None:
        """Shows a measurement on the validation text, as the log's ``valid`` has it."""
        self._view.validated(values)
        if self._live is not None:
            self._show()
        else:
            nfe = values.get("nfe")
            calls = "" if nfe is None else f", {nfe:.1f} calls of f a block"
            told = (
                f"validation perplexity {_figure(values.get('perplexity'))}{calls}{_left(values)}"
            )
            write_line(self._console, self._view.line(told))

    def measuring(self) -> None:
        """Says, where there is no bar, why the next lines are late."""
        if self._live is None:
            write_line(self._console, self._view.line("measuring the validation perplexity ..."))

    def bad_step(self, values: Mapping[str, Any]) -> None:
        """Counts a bad step; the run's log messages tell which and why."""
        self._view.bad_steps += 1
        if self._live is not None:
            self._show()

    def _show(self) -> None:
        assert self._live is not None
        self._shown_at = self._view.now
        self._live.show()

    def _line_is_due(self) -> bool:
        steps = self._view.step - self._line_step
        late = self._view.now - self._line_at >= _LINE_S
        return late or steps >= _LINE_SHARE * self._view.total

    def _write_line(self) -> None:
        self._line_at, self._line_step = self._view.now, self._view.step
        write_line(self._console, self._view.line())


class _View:
    """What there is to show, in as much width as there is."""

    def __init__(self, *, total: int, done: int, ascii_only: bool) -> None:
        self.total, self.step, self.bad_steps = total, done, 0
        self._radius_name = "rho" if ascii_only else "\N{GREEK SMALL LETTER RHO}"
        self._values: Mapping[str, Any] = {}
        self._valid: float | None = None
        self._radius: float | None = None
        self._passed = deque([(time.monotonic(), done)])

    @property
    def now(self) -> float:
        return self._passed[-1][0]

    def advance(self, step: int) -> None:
        self.step = step
        self._passed.append((time.monotonic(), step))
        while len(self._passed) > 2 and self.now - self._passed[1][0] > _SPEED_S:
            self._passed.popleft()

    def describe(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._radius = values.get("spectral_radius") or self._radius  # not of every step

    def validated(self, values: Mapping[str, Any]) -> None:
        self._valid = values.get("perplexity")

    def left_s(self) -> float | None:
        """Seconds to the end at the speed of the last while; None before it is known."""
        (began, first), (now, last) = self._passed[0], self._passed[-1]
        if last <= first:
            return None
        return (self.total - self.step) * (now - began) / (last - first)

    def line(self, told: str | None = None) -> str:
        """One plain line."""
        share = f"{100 * self.step / self.total:.0f} %"
        parts = [f"step {self.step}/{self.total} ({share})"]
        if told is None:
            parts += [text for text, _ in self._figures()]
            if self._values:
                parts.append(f"{self._values.get('tokens_per_s') or 0:,.0f} tok/s")
            parts.append(f"left {duration(self.left_s())}")
        else:
            parts.append(told)
        return "  ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - 1, 10)  # a full line would wrap on some terminals
        yield self._bar(width)
        yield self._second(width)

    def _bar(self, width: int) -> Table | Text:
        count = f"step {self.step}/{self.total}"
        left = duration(self.left_s())
        tail = f"{100 * self.step / self.total:3.0f} %  left {left}"
        speed = self._values.get("tokens_per_s")
        if speed is not None and width >= 60:
            tail += f"  {speed:,.0f} tok/s"
        room = width - len(count) - len(tail) - 4
        if room < 5:
            return Text(f"{count} {tail}"[:width], no_wrap=True)
        row = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        row.add_row(count, Bar(total=self.total, completed=self.step, width=room), tail)
        return row

    def _second(self, width: int) -> Text:
        """The figures that fit, in their order; the last in rank go first."""
        figures = self._figures()
        if not self._values:
            figures.insert(0, ("the first figures come ...", 0))
        while figures and sum(cell_len(text) + 2 for text, _ in figures) - 2 > width:
            figures.remove(max(figures, key=lambda figure: figure[1]))
        return Text("  ".join(text for text, _ in figures), no_wrap=True, overflow="crop")

    def _figures(self) -> list[tuple[str, int]]:
        """Texts with their ranks, 0 the most important."""
        values, found = self._values, []
        if values:
            found.append((f"loss {_figure(values.get('loss'))}", 0))
            found.append((f"ppl {_figure(values.get('perplexity'))}", 2))
        if self._valid is not None:
            found.append((f"valid {_figure(self._valid)}", 1))
        if values:
            calls = _pair(values.get("nfe_forward"), values.get("nfe_backward"), "{:.1f}")
            found.append((f"calls {calls}", 3))
            backward = values.get("residual_backward")
            found.append((f"res {_pair(values.get('residual'), backward, '{:.0e}')}", 4))
        if self._radius is not None:
            found.append((f"{self._radius_name} {self._radius:.2f}", 6))
        if self.bad_steps:
            found.append((f"bad {self.bad_steps}", 1))
        return found


class _SteadyLive:
    """rich's live display, repainted when asked and whole after the terminal has become narrower.

    A terminal that has become narrower breaks the lines that are there into more, of which rich
    does not know: they would stay above the new ones.
    """

    def __init__(self, view: _View, console: Console) -> None:
        self._console = console
        self._live = Live(view, console=console, auto_refresh=False, redirect_stdout=False)
        self._view = view
        self._widths: list[int] = []

    def start(self) -> None:
        self._live.start()
        self.show()

    def show(self) -> None:
        self._clear_broken_lines()
        lines = self._console.render_lines(self._view, pad=False)
        self._widths = [sum(segment.cell_length for segment in line) for line in lines]
        self._live.refresh()

    def stop(self) -> None:
        self._clear_broken_lines()
        self._live.stop()

    def _clear_broken_lines(self) -> None:
        width = max(self._console.width, 1)
        for _ in range(sum(max(0, (was - 1) // width) for was in self._widths)):
            self._console.control(
                Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            )
        self._widths = []


def _figure(value: float | None) -> str:
    """Four digits, or a dash where there is no finite number."""
    if value is None or not math.isfinite(value):
        return "-"
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:.{max(0, 3 - max(0, math.floor(math.log10(max(abs(value), 1)))))}f}"


def _pair(forward: float | None, backward: float | None, form: str) -> str:
    """Figures of both ways, forward first; only it where the other was not measured."""
    texts = ["-" if value is None else form.format(value) for value in (forward, backward)]
    return texts[0] if backward is None else "/".join(texts)


def duration(seconds: float | None) -> str:
    """A length of time to be read at a glance: 42 s, 7 min, 3 h 20 min, 2 d 4 h."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _left(values: Mapping[str, Any]) -> str:
    """The share of the tokens that a measurement left above the tolerance."""
    unconverged, scored = values.get("unconverged"), values.get("scored_tokens")
    if unconverged is None or not scored:
        return ""
    return f", {100 * unconverged / scored:.0f} % of the tokens above the tolerance"
