"""Downloads, from a real server on this machine."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.prepare.server import Site, serving
from training.errors import DataError
from training.prepare.download import Remote, download
from training.prepare.text import Advance

DATA = bytes(range(256)) * 4000


@pytest.fixture
def site() -> Iterator[Site]:
    with serving({"/file.bin": DATA}) as served:
        yield served


def remote(*urls: str, data: bytes = DATA, name: str = "file.bin") -> Remote:
    return Remote(name=name, urls=urls, sha256=hashlib.sha256(data).hexdigest())


class Told:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.bytes = 0
        self.sizes: list[int] = []

    def __call__(self, what: str, size: int) -> Advance:
        self.sizes.append(size)

        def advance(read: int) -> None:
            self.bytes += read

        return advance


def get(file: Remote, folder: Path, told: Told | None = None) -> Path:
    return download(file, folder, timeout_s=10, progress=told or Told())


def test_a_file_arrives_whole_and_is_told_of(site: Site, tmp_path: Path) -> None:
    told = Told()
    path = get(remote(f"{site.url}/file.bin"), tmp_path / "new", told)
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == DATA
    assert (told.bytes, told.sizes) == (len(DATA), [len(DATA)])
    assert [item.name for item in path.parent.iterdir()] == ["file.bin"]


def test_a_cut_connection_is_gone_on_from(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000, 5]
    told = Told()
    assert get(remote(f"{site.url}/file.bin"), tmp_path, told).read_bytes() == DATA
    assert site.ranges_of("/file.bin") == [None, "bytes=300000-", "bytes=300005-"]
    assert told.bytes == len(DATA)


def test_a_part_of_an_earlier_run_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.cut_after = [1000, 0, 0, 0]
    with pytest.raises(
        DataError, match=r"the connection was cut \(1000 bytes are kept in .*\.part"
    ):
        get(remote(f"{site.url}/file.bin"), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == DATA[:1000]
    site.asked.clear()
    assert get(remote(f"{site.url}/file.bin"), tmp_path).read_bytes() == DATA
    assert site.ranges_of("/file.bin") == ["bytes=1000-"]


def test_a_server_without_ranges_begins_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    site.ranges = False
    assert get(remote(f"{site.url}/file.bin"), tmp_path).read_bytes() == DATA


def test_an_answer_beside_the_asked_range_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA[:10])
    site.shift = 3
    with pytest.raises(DataError, match="asked for the bytes from 10, got bytes 13-"):
        get(remote(f"{site.url}/file.bin"), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == DATA[:10]


def test_a_part_longer_than_the_file_is_dropped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA + b"more")
    assert get(remote(f"{site.url}/file.bin"), tmp_path).read_bytes() == DATA


def test_a_whole_part_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA)
    told = Told()
    assert get(remote(f"{site.url}/file.bin"), tmp_path, told).read_bytes() == DATA
    assert site.ranges_of("/file.bin") == [f"bytes={len(DATA)}-"]
    assert told.bytes == 0


def test_wrong_bytes_are_not_believed_and_not_kept(site: Site, tmp_path: Path) -> None:
    site.files["/file.bin"] = DATA[:-1] + b"?"
    with pytest.raises(DataError, match=r"file.bin must have the sha256 \w{64}, got \w{64}"):
        get(remote(f"{site.url}/file.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_next_address_is_tried(site: Site, tmp_path: Path) -> None:
    urls = (f"{site.url}/gone.bin", f"{site.url}/file.bin")
    assert get(remote(*urls), tmp_path).read_bytes() == DATA


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        with pytest.raises(DataError, match=r"cannot download file.bin: http.*refused"):
            get(remote(url), tmp_path)


def test_a_missing_file_is_told_with_its_code(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.bin: HTTP 404"):
        get(remote(f"{site.url}/gone.bin"), tmp_path)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--url must begin with http.*got file:///etc/passwd"):
        get(remote("file:///etc/passwd"), tmp_path)


@pytest.mark.parametrize(
    "url", ["http://[", "http://a..b/", "http://a:x/", "http:///a", "http://127.0.0.1:1/\u00e9 b"]
)
def test_what_is_no_address_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download file.bin: http:"):
        get(remote(url), tmp_path)


def test_a_folder_that_cannot_be(site: Site, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*taken"):
        get(remote(f"{site.url}/file.bin"), tmp_path / "taken")
