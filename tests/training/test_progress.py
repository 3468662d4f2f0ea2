"""What a run shows: what fits the terminal, and lines where there is none."""

import io
import logging
import os
import pty
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from training import progress
from training.progress import ProgressBar, duration, stage

VALUES = {
    "loss": 4.0123,
    "perplexity": 55.27,
    "nfe_forward": 8.0,
    "nfe_backward": 6.0,
    "residual": 7.3e-3,
    "residual_backward": 2e-2,
    "tokens_per_s": 1052.2,
    "spectral_radius": 0.934,
}
FIGURES = ("loss 4.012", "ppl 55.27", "valid 65.10", "calls 8.0/6.0", "res 7e-03/2e-02", "bad 1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that stands still until it is told to go on."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def picture(width: int, *, encoding: str = "utf-8", total: int = 4900) -> list[str]:
    """The lines of a bar in the middle of a run."""
    view = progress._View(total=total, done=0, ascii_only=encoding == "ascii")
    view.advance(total // 2)
    view.describe(VALUES)
    view.validated({"perplexity": 65.1})
    view.bad_steps = 1
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, legacy_windows=False)
    console.print(view)
    out.seek(0)
    return out.read().splitlines()


def test_a_terminal_of_80_columns_has_all_figures() -> None:
    first, second = picture(80)
    assert first.startswith("step 2450/4900  ━━━")
    assert "50 %" in first
    assert "left" in first
    assert first.endswith("1,052 tok/s")
    assert all(figure in second for figure in FIGURES)


def test_a_wider_one_has_the_spectral_radius_too() -> None:
    assert picture(120)[1].endswith("\N{GREEK SMALL LETTER RHO} 0.93  bad 1")


@given(width=st.integers(12, 200), total=st.sampled_from([10, 4900, 300_000, 10**9]))
def test_no_line_is_as_long_as_the_terminal(width: int, total: int) -> None:
    lines = picture(width, total=total)
    assert len(lines) == 2
    assert all(cell_len(line) < width for line in lines)


def test_what_matters_most_stays_longest() -> None:
    second = picture(30)[1]
    assert "loss 4.012" in second
    assert "res" not in second


def test_a_terminal_without_unicode_gets_none() -> None:
    first, second = picture(120, encoding="ascii")
    assert "rho 0.93" in second
    assert (first + second).isascii()


def test_a_file_gets_a_line_at_once_then_seldom(clock: Any) -> None:
    out = io.StringIO()
    with ProgressBar(total=1000, done=0, stream=out) as bar:
        assert out.getvalue() == "step 0/1000 (0 %)  the first step comes ...\n"
        for step in range(1, 101):  # 1 s each: 30 s come before 5 %
            clock(1.0)
            bar.advance(step)
            bar.describe(VALUES)
    shown = [int(line.split()[1].partition("/")[0]) for line in out.getvalue().splitlines()]
    assert shown == [0, 1, 31, 61, 91, 100]
    assert "loss 4.012" in out.getvalue()
    assert "1,052 tok/s  left 15 min" in out.getvalue()


def test_a_fast_run_has_a_line_every_twentieth(clock: Any) -> None:
    out = io.StringIO()
    with ProgressBar(total=1000, done=0, stream=out) as bar:
        for step in range(1, 1001):
            clock(0.01)
            bar.advance(step)
            bar.describe(VALUES)
    assert len(out.getvalue().splitlines()) == 2 + 19 + 1  # first step, each 50th, and the end


def test_a_measurement_is_a_line() -> None:
    out = io.StringIO()
    with ProgressBar(total=10, done=4, stream=out) as bar:
        bar.validated({"perplexity": 65.1, "nfe": 8.0})
    expected = "step 4/10 (40 %)  validation perplexity 65.10, 8.0 calls of f a block"
    assert out.getvalue().splitlines()[1] == expected


def test_values_that_are_missing_are_dashes() -> None:
    out = io.StringIO()
    with ProgressBar(total=10, done=4, stream=out) as bar:
        bar.advance(5)
        bar.describe({name: None for name in VALUES} | {"tokens_per_s": 1.0})
        bar.validated({"perplexity": None})
    assert "loss -  ppl -  calls -  res -" in out.getvalue()
    assert "validation perplexity -" in out.getvalue()


def test_a_stream_that_is_closed_does_not_end_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with ProgressBar(total=10, done=0, stream=stream) as bar:
        bar.validated({"perplexity": 65.1})
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_stages_are_lines_in_a_file() -> None:
    out = io.StringIO()
    with stage("reading the data", stream=out):
        assert out.getvalue() == "reading the data ...\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, list[bytes]]]:
    """A terminal of 80 columns, and all that was written to it, once it is closed."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:  # how Linux ends a terminal
            pass

    reader = threading.Thread(target=read)
    reader.start()
    stream = os.fdopen(theirs, "w", encoding="utf-8")
    yield stream, seen
    if not stream.closed:
        stream.close()
    reader.join(timeout=10)
    os.close(ours)


def finished(terminal: tuple[TextIO, list[bytes]]) -> str:
    """What was written, after closing."""
    stream, seen = terminal
    stream.close()
    for thread in threading.enumerate():
        if thread.name.endswith("(read)"):
            thread.join(timeout=10)
    return b"".join(seen).decode()


def test_log_messages_stand_above_the_bar(terminal: tuple[TextIO, list[bytes]]) -> None:
    stream = terminal[0]
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with ProgressBar(total=10, done=0, stream=stream) as bar:
            bar.advance(1)
            bar.describe(VALUES)
            logging.getLogger("training").warning("a [message] %d", 1)
            bar.advance(2)
        assert handler.stream is stream
    finally:
        logging.getLogger().removeHandler(handler)
    text = finished(terminal)
    assert "\x1b[2Ka [message] 1\r\n" in text  # on a line that was cleared before
    assert "step 1/10" in text.split("a [message] 1")[1]  # and the bar again below


def test_a_bar_that_has_become_too_wide_is_cleared_whole(
    terminal: tuple[TextIO, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressBar(total=10, done=0, stream=terminal[0]) as bar:
        bar.describe(VALUES)
        up = "\x1b[1A"
        monkeypatch.setattr(bar._console, "_environ", {"TERM": "xterm"})
        monkeypatch.setattr(bar._console, "_width", 40)
        bar.describe(VALUES)
    before, _, after = finished(terminal).rpartition("tok/s")
    # Two lines of 80 columns are four of 40: two more than rich itself clears.
    assert (before.count(up), after.count(up)) == (1, 4)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    terminal: tuple[TextIO, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with ProgressBar(total=10, done=0, stream=terminal[0]):
        pass
    assert finished(terminal) == "step 0/10 (0 %)  the first step comes ...\r\n"


def test_force_color_makes_no_terminal_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with stage("reading", stream=out), ProgressBar(total=10, done=0, stream=out):
        pass
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.4, "0 s"),
        (89, "89 s"),
        (100, "2 min"),
        (3_570, "1 h 00 min"),
        (3_660, "1 h 01 min"),
        (86_400 + 7_200, "1 d 2 h"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (4.01234, "4.012"),
        (55.271, "55.27"),
        (1234.5, "1234"),
        (123_456.0, "123456"),
        (2e9, "2.0e+09"),
        (0.0, "0.000"),
    ],
)
def test_figures_have_four_digits(value: float | None, text: str) -> None:
    assert progress._figure(value) == text
