"""The folder of one profile: made beside the others, and given its name when it is whole."""

import contextlib
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from server.engine.recording import Recording

TRACE, STACKS, ABOUT = "trace.json.gz", "stacks.txt", "profile.json"
_UNFINISHED = ".unfinished-"
_PORTION = 1 << 20


def make(folder: Path) -> Path:
    """A place for a profile, which nobody reads yet; what a killed process has left is removed.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        # A folder can be made where no byte can be written.
        _write(place / ABOUT, b" " * _PORTION)
    except OSError:
        discard(place)
        raise
    return place


def fill(place: Path, recording: Recording, stacks: str, about: Mapping[str, object]) -> None:
    """Write everything.

    Raises:
        OSError: something could not be written, or not whole.
    """
    _write(place / STACKS, stacks.encode())
    _write(place / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    raw = place / "trace.json"
    recording.write(raw)
    _pack(raw, place / TRACE)
    raw.unlink()


def publish(place: Path, name: str) -> Path:
    """Give a whole profile its name. Raises OSError."""
    # As open as other files that the process makes.
    mask = os.umask(0)
    os.umask(mask)
    place.chmod(0o777 & ~mask)
    return place.rename(place.parent / name)


def discard(place: Path) -> None:
    """Leave nothing of a profile that is none; without an error."""
    for path in place.glob("*"):
        # Torch keeps files open that it could not write: their room is given back all the same.
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
    shutil.rmtree(place, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _pack(raw: Path, packed: Path) -> None:
    """Compress a trace. Raises OSError also where torch has not written all of it."""
    if not raw.exists():
        raise _not_whole(raw)
    depth, last = 0, b""
    with raw.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        while portion := source.read(_PORTION):
            depth += portion.count(b"{") - portion.count(b"}")
            last = portion.rstrip()[-1:] or last
            target.write(portion)
    if depth != 0 or last != b"}":
        raise _not_whole(raw)
    with packed.open("rb") as file:
        os.fsync(file.fileno())


def _not_whole(raw: Path) -> OSError:
    free = shutil.disk_usage(raw.parent).free
    return OSError(None, f"torch could not write all of its trace; {free} bytes are free there")
