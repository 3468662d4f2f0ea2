"""Files that say who may call and with what, read again when they change or somebody asks."""

import asyncio
import logging
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from server.security.audit import Audit
from server.security.counts import SecurityCounts
from server.security.errors import SecurityFileError

LOOK_S = 1.0
"""How often files are looked at. A change counts once it is as old, so that it is whole."""

_log = logging.getLogger(__name__)

_Signature = tuple[object, ...]


class Reloadable(Protocol):
    """Something that comes from files."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it comes from."""

    def reload(self) -> None:
        """Read it anew; raises SecurityFileError and stays as it is if that cannot be."""


class Reloader:
    """Reads things anew, and tells what came of it."""

    def __init__(
        self,
        things: Sequence[tuple[str, Reloadable]],
        counts: SecurityCounts,
        audit: Audit,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        """Look after things by name.

        Args:
            things: those that have been read just now.
            counts: of what has been read.
            audit: gets a line for each.
            look_s: seconds between two looks.
        """
        self._things = tuple(things)
        self._counts, self._audit = counts, audit
        self._look_s = look_s
        self._lock = threading.Lock()
        self._read = [_signature(thing) for _, thing in things]
        self._seen = list(self._read)

    async def run(self) -> None:
        """Look for ever, beside the event loop, as a file of many principals takes a while."""
        while self._things:
            await asyncio.sleep(self._look_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read what has changed before the last look, and not since."""
        with self._lock:
            for index, (name, thing) in enumerate(self._things):
                seen = _signature(thing)
                is_quiet = seen == self._seen[index]
                self._seen[index] = seen
                if is_quiet and seen != self._read[index]:
                    self._reload(index, name, thing, why="a change of its files")

    def reload(self) -> None:
        """Read everything now."""
        with self._lock:
            for index, (name, thing) in enumerate(self._things):
                self._reload(index, name, thing, why="a signal")

    def _reload(self, index: int, name: str, thing: Reloadable, *, why: str) -> None:
        # Before it is read: a change meanwhile is one that the next look finds.
        self._read[index] = self._seen[index] = _signature(thing)
        try:
            _check_files(thing)
            thing.reload()
        except SecurityFileError as error:
            _log.error("%s stay as they were: %s", name, error)
            is_done = False
        except Exception:  # a file may be odd in ways nobody thought of: look on for a better one
            _log.exception("%s stay as they were", name)
            is_done = False
        else:
            _log.info("%s have been read anew", name)
            is_done = True
        self._counts.reloaded(name, is_done=is_done)
        result = "OK" if is_done else "FAILED"
        self._audit.record(who=why, action=f"reload {name}", result=result)


def _signature(thing: Reloadable) -> _Signature:
    """What changes when a file does: also where another one takes its place."""
    return tuple(_of(path) for path in thing.files)


def _of(path: Path) -> _Signature:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno,)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _check_files(thing: Reloadable) -> None:
    """Raises SecurityFileError for a pipe and the like: who reads one may wait for ever."""
    for path in thing.files:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # which is told when it is read
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
            raise SecurityFileError(f"{path} must be a file to be read anew, not a pipe or device")
