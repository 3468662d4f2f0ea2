"""Bars for what takes long, on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from training.prepare.folder import Progress as Tell
from training.prepare.text import Advance


@contextmanager
def bars() -> Iterator[Tell]:
    """What begins a bar of so many bytes, 0 for an unknown number; none where nobody looks."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:

        def begin(what: str, size: int) -> Advance:
            task = progress.add_task(what, total=size or None)
            return lambda read: progress.update(task, advance=read)

        yield begin
