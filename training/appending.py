"""A file of records that grows by whole ones only, whatever the disk does."""

import errno
import os
from pathlib import Path


class RecordFile:
    """Appends; what was taken of a record that did not fit is taken back."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Opens or makes a file; what it has beyond ``size`` bytes is cut off."""
        self._file = path.open("ab", buffering=0)
        self._size = size
        self._file.truncate(size)

    def append(self, record: bytes) -> OSError | None:
        """Hands a record to the system; returns why it could not, and can be tried again."""
        try:
            if os.fstat(self._file.fileno()).st_size > self._size:
                self._file.truncate(self._size)  # a part of one that failed before
            taken = self._file.write(record)
            if taken < len(record):
                self._file.truncate(self._size)
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return error
        self._size += taken
        return None

    def sync(self) -> None:
        """Waits until all of it is on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
