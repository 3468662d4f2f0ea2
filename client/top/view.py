"""How the figures of a server look on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from client.top.figures import Figures, ModelFigures

_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 80
_TITLES: Final = 23
_GAP: Final = 2
_MOST_MODELS: Final = 3
"""Beside each other."""
_LEAST_CELL: Final = 14
"""Width of a model's column in which its figures are whole."""
_HISTORY: Final = 52
_NOTHING: Final = "–"
_BUSY: Final = 0.9
_FULL: Final = 0.9
_MUCH: Final = 0.01

Cell = tuple[str, str]
"""Text and style."""


def view(
    figures: Figures, *, place: str, clock: str, history: Sequence[float], trouble: str = ""
) -> RenderableType:
    """All of it, at most 80 columns wide; where there are fewer, fewer models.

    Args:
        figures: the last ones.
        place: where they are from.
        clock: when, for people.
        history: tokens a second, the last one at the end.
        trouble: why there are no newer ones; empty where there is no trouble.
    """
    parts: list[RenderableType] = [_head(figures, place, clock), _process(figures), Text()]
    if trouble:
        parts[0:0] = [Text(trouble, style="bold red", overflow="fold")]
    parts.append(_Models(figures.models) if figures.models else Text("no model is loaded yet"))
    if len(history) > 1:
        line = f"tokens/s, all models     {bars(history[-_HISTORY:])}"
        parts += [Text(), Text(line, no_wrap=True)]
    return Group(*parts)


def _head(figures: Figures, place: str, clock: str) -> Text:
    state, style = ("ready", "green") if figures.is_ready else ("takes no calls", "bold red")
    return Text.assemble(
        ("deqlm ", "bold"),
        visible(figures.version),
        f" at {place}  ",
        (state, style),
        f"  up {duration(figures.up_s)}  {clock}",
        overflow="fold",
    )


def _process(figures: Figures) -> Text:
    store = f"store {count(figures.store_sessions)} sessions, {size(figures.store_bytes)}"
    return Text.assemble(
        f"calls {count(figures.calls)}, streams {count(figures.streams)}  "
        f"memory {size(figures.memory_bytes)}  cores {number(figures.cores)}  ",
        store if figures.store_up else ("the session store is down", "bold red"),
        overflow="fold",
    )


class _Models:
    """The table of models: as many of them as the terminal has room for."""

    def __init__(self, models: Sequence[ModelFigures]) -> None:
        self._models = models

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _WIDTH)
        room = (width - _TITLES) // (_LEAST_CELL + _GAP)
        yield _table(self._models, most=min(_MOST_MODELS, max(room, 1)))


def _table(models: Sequence[ModelFigures], *, most: int) -> RenderableType:
    table = Table(
        box=None, pad_edge=False, padding=(0, _GAP), show_header=True, header_style="bold"
    )
    table.add_column("", no_wrap=True)
    shown = models[:most]
    width = (_WIDTH - _TITLES) // len(shown) - _GAP
    for model in shown:
        table.add_column(visible(model.name), justify="right", no_wrap=True, max_width=width)
    for title, cell in _LINES:
        cells = [cell(model) for model in shown]
        table.add_row(title, *(Text(text, style=style) for text, style in cells))
    rest = len(models) - len(shown)
    more = Text(f"and {rest} more; --model NAME shows one", style="dim")
    return Group(table, more) if rest else table


def _plain(show: Callable[[ModelFigures], str]) -> Callable[[ModelFigures], Cell]:
    return lambda model: (show(model), "")


def _marked(
    show: Callable[[ModelFigures], str], is_bad: Callable[[ModelFigures], bool]
) -> Callable[[ModelFigures], Cell]:
    return lambda model: (show(model), "yellow" if is_bad(model) else "")


_LINES: Final[tuple[tuple[str, Callable[[ModelFigures], Cell]], ...]] = (
    ("requests/s", _plain(lambda m: number(m.requests_per_s))),
    ("refused/s", _marked(lambda m: number(m.refused_per_s), lambda m: m.refused_per_s > 0)),
    ("running", _plain(lambda m: count(m.running))),
    ("waiting", _marked(lambda m: count(m.waiting), lambda m: m.waiting > 0)),
    ("tokens/s scored", _plain(lambda m: number(m.scored_per_s))),
    ("tokens/s generated", _plain(lambda m: number(m.generated_per_s))),
    ("first token p50, p99", _plain(lambda m: _pair(m.first_token_s))),
    ("between tokens p50, p99", _plain(lambda m: _pair(m.between_tokens_s))),
    ("rows per call of f", _plain(lambda m: number(m.rows))),
    ("window", _plain(lambda m: number(m.window))),
    ("calls of f per token", _plain(lambda m: number(m.calls_per_token))),
    ("not converged", _marked(lambda m: percent(m.unconverged), lambda m: m.unconverged > _MUCH)),
    ("time in f", _marked(lambda m: percent(m.busy), lambda m: m.busy > _BUSY)),
    (
        "sessions",
        _marked(
            lambda m: f"{count(m.sessions)} of {count(m.max_sessions)}",
            lambda m: m.sessions > _FULL * m.max_sessions,
        ),
    ),
    ("memory of sessions", _plain(lambda m: size(m.session_bytes))),
)


def visible(text: str) -> str:
    """A name without what would control the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def bars(values: Sequence[float]) -> str:
    """A line of bars, the largest value being the highest.

    >>> bars([0.0, 1.0, 2.0])
    '▁▅█'
    """
    most = max(values, default=0.0)
    if not most > 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}" if math.isfinite(value) else _NOTHING


def number(value: float) -> str:
    """Three digits, more where it is large.

    >>> [number(value) for value in (0.0, 1.234, 56.78, 1234.5, math.nan)]
    ['0.00', '1.23', '56.8', '1,234', '–']
    """
    if not math.isfinite(value):
        return _NOTHING
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else _NOTHING


def seconds(value: float) -> str:
    """A short time.

    >>> [seconds(value) for value in (0.00123, 0.0456, 1.5, 75.0)]
    ['1.2 ms', '46 ms', '1.5 s', '75 s']
    """
    if not math.isfinite(value):
        return _NOTHING
    if value < 1:
        return f"{1000 * value:.{1 if value < 0.01 else 0}f} ms"
    return f"{value:.{1 if value < 10 else 0}f} s"


def _pair(values: tuple[float, float]) -> str:
    return ", ".join(seconds(value) for value in values)


def size(value: float) -> str:
    """Bytes.

    >>> [size(value) for value in (12.0, 3456.0, 7.8e9)]
    ['12 B', '3.5 kB', '7.8 GB']
    """
    if not math.isfinite(value):
        return _NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.{0 if unit == 'B' or value >= 100 else 1}f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(value: float) -> str:
    """A long time.

    >>> [duration(value) for value in (5.0, 300.0, 9000.0, 200000.0)]
    ['5 s', '5 min', '2 h 30 min', '2 d 7 h']
    """
    if not math.isfinite(value):
        return _NOTHING
    minutes, hours, days = int(value // 60), int(value // 3600), int(value // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{max(value, 0):.0f} s"
