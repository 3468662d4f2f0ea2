"""Who has administered what, and what came of it: a line of JSON for each act."""

import datetime
import json
import logging
import os
from pathlib import Path

from server.logs import AUDIT
from server.security.errors import SecurityFileError

_log = logging.getLogger(__name__)


class Audit:
    """Appends lines to a file, or to the log."""

    def __init__(self, path: Path | None) -> None:
        """Begin to write.

        Raises:
            SecurityFileError: the file cannot be written.
        """
        self._path = path
        if path is not None:
            try:
                self._append(path, "")
            except OSError as error:
                raise SecurityFileError(
                    f"audit_log cannot be written to {path}: {error.strerror}"
                ) from None

    def record(self, *, who: str, action: str, result: str, **details: str) -> None:
        """Note an act.

        Args:
            who: did it: a principal, or what made the server do it.
            action: the method, or what was done.
            result: OK, or the status that it ended with.
            details: what else is known.
        """
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "who": who, "action": action, "result": result, **details}
        line = json.dumps(entry)
        if self._path is None:
            AUDIT.info("%s", line, extra={"audit": entry})
            return
        try:
            self._append(self._path, line + "\n")
        except OSError as error:
            # It has been done already: the log is the next best place.
            _log.error("audit_log cannot be written: %s", error.strerror)
            AUDIT.info("%s", line, extra={"audit": entry})

    @staticmethod
    def _append(path: Path, text: str) -> None:
        """Opened for each line, so that a file that was moved away is begun anew.

        A pipe that nobody reads is an error at once, not a server that hangs.
        """
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        handle = os.open(path, how, 0o600)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(text)
