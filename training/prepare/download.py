"""Downloads over HTTP that go on where they were cut, and are checked before they are believed."""

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.errors import DataError
from training.prepare.folder import Progress
from training.prepare.text import Advance

_CHUNK = 1 << 18
_FRUITLESS = 3  # requests in a row that bring nothing, before a server is given up
_PARTIAL, _BEYOND = 206, 416
_NO_ANSWER = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file that can be downloaded.

    Attributes:
        name: it gets here.
        urls: where it is, tried in turn.
        sha256: of the file; None if unknown.
        md5: of the file, where that is what was published.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None


class _Failed(Exception):
    """A download from one address came to nothing."""


def download(remote: Remote, folder: Path, *, timeout_s: float, progress: Progress) -> Path:
    """Downloads a file into a folder; what is there of it already is not asked for again.

    Args:
        remote: the file.
        folder: made if it does not exist. While incomplete, the file is called ``NAME.part``.
        timeout_s: seconds without an answer after which a request has failed.
        progress: is told of the bytes.

    Returns:
        The file's path.

    Raises:
        DataError: nobody gives the file, or what they give is not it.
    """
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    failures: list[str] = []
    for url in remote.urls:
        if not url.startswith(("http://", "https://")):
            raise DataError(f"--url must begin with http:// or https://, got {url}")
        try:
            _fetch(url, part, remote, timeout_s=timeout_s, progress=progress)
            check_digest(remote, part)
            part.replace(target)
            return target
        except (_Failed, DataError) as failure:
            failures.append(f"{url}: {failure}")
        except OSError as error:
            raise DataError(f"cannot write {part}: {error.strerror or error}") from None
    raise DataError(f"cannot download {remote.name}: {'; then '.join(failures)}")


def check_digest(remote: Remote, path: Path) -> None:
    """Raises DataError, and removes the file, unless it has the published checksums."""
    for kind, wanted in (("sha256", remote.sha256), ("md5", remote.md5)):
        if wanted is None:
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != wanted.lower():
            path.unlink()
            raise DataError(
                f"{remote.name} must have the {kind} {wanted}, got {found}; it is another file, "
                "or was damaged on the way, and has been removed"
            )


class _Bar:
    """What has arrived, told from the first answer on: that says how much there is."""

    def __init__(self, begin: Callable[[int], Advance]) -> None:
        self._begin = begin
        self._advance: Advance | None = None
        self._shown = 0

    def show(self, have: int, total: int | None) -> None:
        """Shows that so many bytes are here."""
        if self._advance is None:
            self._advance = self._begin(total or 0)
        self._advance(have - self._shown)
        self._shown = have


def _fetch(url: str, part: Path, remote: Remote, *, timeout_s: float, progress: Progress) -> None:
    """Asks for what is missing until nothing is."""
    bar = _Bar(partial(progress, f"downloading {remote.name}"))
    fruitless, reason = 0, ""
    while fruitless < _FRUITLESS:
        before = _size(part)
        try:
            if _request(url, part, timeout_s=timeout_s, bar=bar):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code != _BEYOND:
                raise _Failed(f"HTTP {error.code} {error.reason}") from None
            if error.headers.get("Content-Range") == f"bytes */{before}":
                return  # whole already, by a process that was killed before it could say so
            part.unlink(missing_ok=True)  # longer than the file: it was of another one
        except _NO_ANSWER as error:
            reason = _said(getattr(error, "reason", error))
        except ValueError as error:  # http://[ and http://a..b/, in the words of three modules
            raise _Failed(f"cannot be an address: {error}") from None
        fruitless = 0 if _size(part) > before else fruitless + 1
    kept = f" ({_size(part)} bytes are kept in {part} for another try)" if _size(part) else ""
    raise _Failed(reason + kept)


def _request(url: str, part: Path, *, timeout_s: float, bar: _Bar) -> bool:
    """One request for the bytes from the end of ``part``. Returns whether it is whole now."""
    have = _size(part)
    headers = {"User-Agent": "deqlm", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        have, total = _extent(response.status, response.headers, have)
        part.parent.mkdir(parents=True, exist_ok=True)  # not before there is something to write
        with part.open("ab" if have else "wb") as file:
            while data := response.read(_CHUNK):
                have += file.write(data)
                bar.show(have, total)
    return total is None or have == total


def _extent(status: int, headers: http.client.HTTPMessage, have: int) -> tuple[int, int | None]:
    """Where an answer begins in the file, and how long the file is, if the server says so."""
    length = headers.get("Content-Length")
    if status != _PARTIAL:  # the whole file, be it that a part was asked for
        return 0, int(length) if length is not None and length.isdecimal() else None
    unit, _, extent = headers.get("Content-Range", "").partition(" ")
    span, _, total = extent.partition("/")
    if unit != "bytes" or span.partition("-")[0] != str(have):
        raise _Failed(f"asked for the bytes from {have}, got {headers.get('Content-Range')}")
    return have, int(total) if total.isdecimal() else None


def _said(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
