"""Sessions in an SQLite file with a write-ahead log."""

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from server.store.base import Entry, Head, StoreError, StoreOpenError

Sync = Literal["normal", "full"]

_APPLICATION_ID = 0x4445514C  # "DEQL"
_SCHEMA_VERSION = 1
# The head comes first, so that reading all of them does not touch the pages of the bodies.
_SCHEMA = """
CREATE TABLE sessions (session_id TEXT PRIMARY KEY, head BLOB NOT NULL, body BLOB NOT NULL)
"""
_log = logging.getLogger(__name__)

_CHECKPOINT_PAGES = 4000
"""Pages of the log (of 4 KiB) after which they go to the file itself."""


class SQLiteStore:
    """A file, and beside it ``-wal`` while it is open.

    What ``write`` has done survives the end of the process at any moment; with ``sync="full"`` a
    power failure as well, for an fsync each. A file that somebody deletes meanwhile is made anew,
    with all that was in it.
    """

    outlives = True

    def __init__(self, path: Path, *, sync: Sync = "normal", timeout_s: float = 2.0) -> None:
        """Opens or makes the file, which then is this process's alone.

        Raises:
            StoreOpenError: it is in use, cannot be written, or is no file of sessions.
        """
        self.label = f"sqlite:{path}"
        self._path, self._sync, self._timeout_s = path, sync, timeout_s
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        try:
            self._connection()
        except (sqlite3.Error, OSError) as error:
            raise StoreOpenError(f"cannot open {self.label}: {error}") from error

    def write(self, entries: Sequence[Entry], deleted: Sequence[str]) -> None:
        """Keeps and drops entries in one transaction."""
        try:
            db = self._in_place()
            with db:
                db.executemany(
                    "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)",
                    [(entry.session_id, entry.head, entry.body) for entry in entries],
                )
                db.executemany("DELETE FROM sessions WHERE session_id = ?", [(i,) for i in deleted])
        except (sqlite3.Error, OSError) as error:
            self._forget_connection()
            raise StoreError(f"{self.label}: {error}") from error

    def read(self, session_id: str) -> bytes | None:
        """The body of an entry."""
        query = "SELECT body FROM sessions WHERE session_id = ?"
        try:
            found = self._connection().execute(query, (session_id,)).fetchone()
        except (sqlite3.Error, OSError) as error:
            self._forget_connection()
            raise StoreError(f"{self.label}: {error}") from error
        return None if found is None else bytes(found[0])

    def heads(self) -> Iterator[Head]:
        """All entries."""
        try:
            rows = self._connection().execute(
                "SELECT session_id, head, length(body) FROM sessions ORDER BY rowid"
            )
            for session_id, head, size in rows:
                yield Head(str(session_id), bytes(head), int(size))
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.label}: {error}") from error

    def close(self) -> None:
        """Brings the log into the file and closes it."""
        if self._db is not None:
            try:
                self._in_place()
            except (sqlite3.Error, OSError, StoreError) as error:
                _log.error("%s is closed, and lacks what was written last: %s", self.label, error)
        self._forget_connection()

    def _in_place(self) -> sqlite3.Connection:
        """The connection, once it is to what is at the path.

        Raises:
            StoreError: it is not. It stays open then, as it alone has the sessions.
        """
        db, there = self._connection(), _identity(self._path)
        if there is None:
            self._make_anew(db)
        elif there != self._file:
            raise StoreError(
                f"{self.label}: another file is in its place; start the server again to use that"
            )
        elif _identity(self._log_path) is None:
            self._forget_connection()  # which has all of the log in the file
        return self._connection()

    def _make_anew(self, db: sqlite3.Connection) -> None:
        """A file with all that the deleted one had, which goes on without a name until then."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                db.execute("VACUUM INTO ?", (str(self._path),))
            except BaseException:
                self._path.unlink()
                raise
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self.label} was deleted, and cannot be made anew: {error}"
            ) from error
        self._forget_connection()
        _log.warning("%s was deleted, and has been made anew with all that it had", self.label)

    @property
    def _log_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            # Sessions are their owners' texts: nobody else on the machine reads them.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(self._path, timeout=self._timeout_s, check_same_thread=False)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            self._db, self._file = db, _identity(self._path)
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Two servers on one file would each miss what the other writes. The lock ends with the
        # process, however that ends.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {self._sync.upper()}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        is_new = version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if is_new:
            with db:
                db.execute("BEGIN")
                db.execute(_SCHEMA)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif version != _SCHEMA_VERSION or not self._is_ours(db):
            raise sqlite3.DatabaseError(
                f"it is no file of sessions of version {_SCHEMA_VERSION}, or another program's"
            )

    @staticmethod
    def _is_ours(db: sqlite3.Connection) -> bool:
        return bool(db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID)

    def _forget_connection(self) -> None:
        """Closes it; the next call opens the file anew, which helps after some errors."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells one file from another; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
