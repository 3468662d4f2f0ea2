"""Single files out of zip and tar archives: by name, never by the paths that an archive gives."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from deq_model.files import write_whole
from training.errors import DataError

T = TypeVar("T")
_CHUNK = 1 << 20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its contents."""
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except _BROKEN:  # one that is cut off soon after its beginning; unpacking will tell
        return True


def unpack(archive: Path, names: Sequence[str], folder: Path) -> None:
    """Puts the members with these file names into a folder, whatever folders they are in there.

    Args:
        archive: a zip or tar file, packed or not.
        names: which members.
        folder: made if it does not exist.

    Raises:
        DataError: a member is missing, not a file, or there twice; the archive is damaged; the
            folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, names, folder)
        else:
            _unpack_tar(archive, names, folder)
    except _BROKEN as error:
        raise DataError(f"archive {archive} is damaged: {error}") from None
    except (RuntimeError, NotImplementedError) as error:  # what zipfile says of a locked member
        raise DataError(f"cannot unpack {archive}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot unpack {archive}: {error.strerror or error}") from None


def _unpack_zip(archive: Path, names: Sequence[str], folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [(item.filename, item) for item in file.infolist() if not item.is_dir()]
        chosen = {name: _only(archive, name, members) for name in names}
        for name, member in chosen.items():
            with file.open(member) as source:
                _write(source, folder / name)


def _unpack_tar(archive: Path, names: Sequence[str], folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = [(item.name, item) for item in file.getmembers() if item.isreg()]
        while file.fileobj is not None and file.fileobj.read(_CHUNK):
            pass  # only at its end does a packed file tell that it is damaged
        chosen = {name: _only(archive, name, members) for name in names}
        for name, member in chosen.items():
            with _member(file, member) as source:
                _write(source, folder / name)


@contextmanager
def _member(file: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    source = file.extractfile(member)
    assert source is not None, "a regular member has contents"
    with source:
        yield source


def _only(archive: Path, name: str, members: Sequence[tuple[str, T]]) -> T:
    found = [member for path, member in members if PurePosixPath(path).name == name]
    if len(found) != 1:
        count = "no" if not found else f"{len(found)} files called"
        raise DataError(
            f"archive {archive} must have one file called {name}, it has {count} {name}"
        )
    return found[0]


def _write(source: IO[bytes], path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)

    write_whole(path, write)
