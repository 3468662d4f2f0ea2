"""How far the scoring of a long text has come, on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from client.results import StreamedScore

PORTION_CHARS: Final = 4 * 1024
"""Between two answers of a paced stream: a second or two on a small model."""
_AHEAD_BYTES: Final = PORTION_CHARS + PORTION_CHARS // 2
_PATIENCE_S: Final = 10.0


class Progress:
    """Takes the pieces as they are, and note of the answers; shows nothing."""

    def pieces(self, whole: Iterable[str]) -> Iterator[str]:
        """What is to be sent."""
        yield from whole

    def answered(self, answer: StreamedScore) -> None:
        """Note how far scoring has come."""


class Paced(Progress):
    """Sends little enough ahead that answers come often: a server scores at once what is there.

    It has the next portion always, so that it need not wait. Where no answer comes for some time
    (a slow model, a text without an end of a word) all that is left is sent.
    """

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._sent = self._committed = 0
        self._is_paced = True

    def pieces(self, whole: Iterable[str]) -> Iterator[str]:
        """In portions, each when those before it are nearly done."""
        for piece in whole:
            for begin in range(0, len(piece), PORTION_CHARS):
                portion = piece[begin : begin + PORTION_CHARS]
                with self._told:
                    if not self._told.wait_for(self._may_send, _PATIENCE_S):
                        self._is_paced = False
                    self._sent += len(portion.encode())
                yield portion

    def answered(self, answer: StreamedScore) -> None:
        """Let the next portion go."""
        with self._told:
            self._committed = answer.committed_bytes
            self._told.notify_all()

    def end(self) -> None:
        """Hold nothing back any more, as the stream is over."""
        with self._told:
            self._is_paced = False
            self._told.notify_all()

    def _may_send(self) -> bool:
        return not self._is_paced or self._sent - self._committed <= _AHEAD_BYTES


@contextmanager
def progress(total_bytes: int | None) -> Iterator[Progress]:
    """Show a bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    # Answers of a large model may be far apart: what moves meanwhile tells that it works.
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("scoring", total=total_bytes)

        class Shown(Paced):
            def answered(self, answer: StreamedScore) -> None:
                super().answered(answer)
                words = (
                    f"{answer.call.scored_tokens} tokens, perplexity {answer.call.perplexity:.2f}"
                )
                bars.update(task, completed=answer.committed_bytes, description=words)

        shown = Shown()
        try:
            yield shown
        finally:
            shown.end()
