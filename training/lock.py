"""One process at a time in a folder."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Has others wait who lock the same folder; the lock ends with the process, however it does.

    The folder is made if it is not there. If it is still empty in the end, it goes again, and so
    do its parents that were made for it.

    Raises:
        BlockingIOError: another process has locked it, and ``wait`` is false.
        OSError: it cannot be made or locked.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    handle = _lock(folder, wait=wait)
    try:
        yield
    finally:
        _remove_empty(made)
        os.close(handle)


def _lock(folder: Path, *, wait: bool) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(handle)
                raise
            _LOG.info("waiting for another process that writes %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)  # who held it has left it empty, and removed it


def _remove_empty(folders: Sequence[Path]) -> None:
    """From the innermost on."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
