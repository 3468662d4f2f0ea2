"""Texts read in bounded pieces: UTF-8, plain, ``.xz`` or ``.gz``, whole or a range of bytes."""

import codecs
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from training.errors import DataError

PIECE = 1 << 22
"""Bytes of a piece."""

PACKED = (".xz", ".gz")
"""Endings of the names of packed files."""

Advance = Callable[[int], None]
"""Told how many more bytes of the unpacked text have been read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text file, or the part of it between two offsets.

    Attributes:
        path: of the file.
        begin: first byte, in the unpacked text; the first of a line.
        end: byte after the last; None for the file's end.
    """

    path: Path
    begin: int = 0
    end: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the whole of a file that is not packed."""
        return self.begin == 0 and self.end is None and self.path.suffix not in PACKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What reading a file through told.

    Attributes:
        size: bytes of the unpacked text.
        sha256: of the file as it is.
    """

    size: int
    sha256: str


def pieces(text: Text, advance: Advance | None = None) -> Iterator[str]:
    """The text, piece by piece; a last line without newline gets one.

    Raises:
        DataError: it cannot be read, is empty, or is no UTF-8; then it names byte and line.
    """
    decoder = _Decoder(text)
    last = ""
    for data in _chunks(text):
        piece = decoder.decode(data)
        if advance is not None:
            advance(len(data))
        if piece:
            last = piece
            yield piece
    decoder.decode(b"", final=True)
    if not last:
        raise DataError(f"text {text.path} is empty")
    if not last.endswith("\n"):
        yield "\n"


def scan(path: Path, advance: Advance | None = None) -> Scan:
    """Reads a text file through. Raises DataError where ``pieces`` would."""
    size = 0

    def count(read: int) -> None:
        nonlocal size
        size += read
        if advance is not None:
            advance(read)

    for _ in pieces(Text(path=path), count):
        pass
    return Scan(size=size, sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def split_off(text: Text, share: float, *, size: int) -> tuple[Text, Text]:
    """Cuts a text of ``size`` bytes in two after a line: the second has about ``share`` of it.

    Raises:
        DataError: a part would be empty.
    """
    wanted = int(size * (1 - share))
    cut = wanted + _line_end(replace(text, begin=wanted))
    if not 0 < cut < size:
        raise DataError(
            f"text {text.path} cannot be cut at --valid-share {share}: a part would have no line; "
            "name a text to validate on instead"
        )
    return replace(text, end=cut), replace(text, begin=cut)


def _line_end(text: Text) -> int:
    """Bytes up to and with the first newline."""
    length = 0
    for data in _chunks(text):
        found = data.find(b"\n")
        if found >= 0:
            return length + found + 1
        length += len(data)
    return length


def _chunks(text: Text) -> Iterator[bytes]:
    try:
        with _opened(text.path) as file:
            file.seek(text.begin)
            left = None if text.end is None else text.end - text.begin
            while left is None or left > 0:
                data = file.read(PIECE if left is None else min(PIECE, left))
                if not data:
                    return
                left = None if left is None else left - len(data)
                yield data
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(text.path, error) from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix == ".xz":
        with lzma.open(path, "rb") as packed:
            yield cast(BinaryIO, packed)
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as unzipped:
            yield cast(BinaryIO, unzipped)
    else:
        with path.open("rb") as plain:
            yield plain


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"cannot read text {path}: {reason}")


class _Decoder:
    """UTF-8 that knows where it is when it breaks."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._offset = text.begin  # of the first byte that is not decoded yet
        self._line = 1

    def decode(self, data: bytes, *, final: bool = False) -> str:
        held = self._decoder.getstate()[0]
        try:
            piece = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise self._broken(held + data, error) from None
        self._offset += len(held) + len(data) - len(self._decoder.getstate()[0])
        self._line += piece.count("\n")
        return piece

    def _broken(self, data: bytes, error: UnicodeDecodeError) -> DataError:
        start = error.start
        line = self._line + data.count(b"\n", 0, start)
        where = f"line {line}" if self._text.begin == 0 else f"line {line} after its start"
        return DataError(
            f"text {self._text.path} is not UTF-8: byte 0x{data[start]:02x} at offset "
            f"{self._offset + start} ({where}): {error.reason}"
        )
