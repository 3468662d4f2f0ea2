"""The published data sets: from folders, archives and servers."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.prepare.server import Site, serving
from training.errors import DataError
from training.prepare.corpora import PTB, WIKITEXT_103, Corpus, Where, find_files, obtain
from training.prepare.download import Remote
from training.prepare.text import Advance
from training.prepare.unpack import unpack

WIKI = {
    f"wiki.{split}.tokens": f"the {split} text\n".encode() for split in ("train", "valid", "test")
}
PENN = {
    f"ptb.{split}.txt": f" the {split} text \n".encode() for split in ("train", "valid", "test")
}


def quiet(what: str, size: int) -> Advance:
    return lambda read: None


def zipped(files: dict[str, bytes], folder: str = "wikitext-103/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(folder)
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], folder: str = "./simple-examples/data/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def published(corpus: Corpus, site: Site, archive: bytes) -> Corpus:
    """A data set as small as the tests' own, published on the tests' own server."""
    if corpus.archive is not None:
        sha256 = hashlib.sha256(archive).hexdigest()
        url = f"{site.url}/{corpus.archive.name}"
        remote = replace(corpus.archive, urls=(url,), sha256=sha256)
        return replace(corpus, archive=remote)
    return replace(
        corpus,
        plain={
            split: Remote(
                name=name,
                urls=(f"{site.url}/{name}",),
                md5=hashlib.md5(PENN[name]).hexdigest(),
            )
            for split, name in corpus.files.items()
        },
    )


@pytest.fixture
def site() -> Iterator[Site]:
    files = {f"/{name}": data for name, data in PENN.items()}
    files |= {"/wikitext-103-v1.zip": zipped(WIKI), "/simple-examples.tgz": tarred(PENN)}
    with serving(files) as served:
        yield served


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_files_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, WIKI)
    found = obtain(WIKITEXT_103, tmp_path, Where(folder=tmp_path / "unused"), quiet)
    assert {split: path.name for split, path in found.items()} == {
        "train": "wiki.train.tokens", "valid": "wiki.valid.tokens", "test": "wiki.test.tokens"
    }  # fmt: skip
    assert list(found) == ["train", "valid", "test"]
    assert not (tmp_path / "unused").exists()


def test_files_under_plain_names(tmp_path: Path) -> None:
    write(tmp_path, {f"{split}.txt": b"a\n" for split in ("train", "valid", "test")})
    assert find_files(PTB, tmp_path)["valid"] == tmp_path / "valid.txt"
    write(tmp_path, PENN)
    assert find_files(PTB, tmp_path)["valid"] == tmp_path / "ptb.valid.txt"


@pytest.mark.parametrize(
    ("corpus", "files", "message"),
    [(PTB, PENN, "has no ptb.valid.txt, no ptb.test.txt"), (WIKITEXT_103, WIKI, "no wiki.test")],
)
def test_a_folder_that_lacks_files(
    tmp_path: Path, corpus: Corpus, files: dict[str, bytes], message: str
) -> None:
    write(tmp_path, {name: data for name, data in files.items() if "train" in name})
    with pytest.raises(DataError, match=message):
        obtain(corpus, tmp_path, Where(folder=tmp_path / "unused"), quiet)


def test_another_archive_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    where = Where(folder=tmp_path / "source")
    for word in (b"first", b"second"):
        changed = WIKI | {"wiki.test.tokens": word}
        (tmp_path / "wiki.zip").write_bytes(zipped(changed))
        found = obtain(WIKITEXT_103, tmp_path / "wiki.zip", where, quiet)
        assert found["test"].read_bytes() == word
    before = found["test"].stat().st_mtime_ns
    assert obtain(WIKITEXT_103, tmp_path / "wiki.zip", where, quiet) == found
    assert found["test"].stat().st_mtime_ns == before


def test_two_at_once_download_once(tmp_path: Path, site: Site) -> None:
    corpus = published(WIKITEXT_103, site, site.files["/wikitext-103-v1.zip"])
    where = Where(folder=tmp_path / "source")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: obtain(corpus, None, where, quiet), range(4)))
    assert {path.name: path.read_bytes() for path in found[0].values()} == WIKI
    assert len(site.asked) == 1


@pytest.mark.parametrize("archive", [zipped(WIKI), tarred(WIKI)])
def test_an_archive_that_is_there(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "wiki").write_bytes(archive)
    where = Where(folder=tmp_path / "source")
    found = obtain(WIKITEXT_103, tmp_path / "wiki", where, quiet)
    assert {path.name: path.read_bytes() for path in found.values()} == WIKI
    assert (tmp_path / "wiki").exists()


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "wiki.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"wiki.zip is neither a folder nor a zip or tar archive"):
        obtain(WIKITEXT_103, tmp_path / "wiki.zip", Where(folder=tmp_path), quiet)
    with pytest.raises(DataError, match=r"none does not exist; name a folder or an archive"):
        obtain(WIKITEXT_103, tmp_path / "none", Where(folder=tmp_path), quiet)


def test_an_archive_is_downloaded_once_and_its_files_kept(tmp_path: Path, site: Site) -> None:
    corpus = published(WIKITEXT_103, site, site.files["/wikitext-103-v1.zip"])
    site.cut_after = [40]
    where = Where(folder=tmp_path / "source")
    for _ in range(2):
        found = obtain(corpus, None, where, quiet)
        assert {path.name: path.read_bytes() for path in found.values()} == WIKI
    assert len(site.asked) == 2
    assert sorted(path.name for path in where.folder.iterdir()) == sorted(WIKI)


def test_plain_files_are_downloaded_one_by_one(tmp_path: Path, site: Site) -> None:
    corpus = published(PTB, site, b"")
    where = Where(folder=tmp_path)
    write(tmp_path, {"ptb.test.txt": PENN["ptb.test.txt"]})
    found = obtain(corpus, None, where, quiet)
    assert {path.name: path.read_bytes() for path in found.values()} == PENN
    assert [path for path, _ in site.asked] == ["/ptb.train.txt", "/ptb.valid.txt"]


@pytest.mark.parametrize("url", ["/", "/simple-examples.tgz"])
def test_a_mirror_of_plain_files_or_of_an_archive(tmp_path: Path, site: Site, url: str) -> None:
    corpus = published(PTB, site, b"")
    where = Where(folder=tmp_path, url=site.url + url)
    assert corpus.plain is not None
    elsewhere = {s: replace(r, urls=("http://127.0.0.1:1/",)) for s, r in corpus.plain.items()}
    found = obtain(replace(corpus, plain=elsewhere), None, where, quiet)
    assert {path.name: path.read_bytes() for path in found.values()} == PENN


def test_a_mirror_must_give_the_published_bytes(tmp_path: Path, site: Site) -> None:
    corpus = published(WIKITEXT_103, site, site.files["/wikitext-103-v1.zip"])
    other = zipped(WIKI | {"wiki.test.tokens": b"forged\n"})
    site.files["/mirror.zip"] = other
    where = Where(folder=tmp_path, url=f"{site.url}/mirror.zip")
    with pytest.raises(DataError, match=r"wikitext-103-v1.zip must have the sha256"):
        obtain(corpus, None, where, quiet)
    told = replace(where, sha256=hashlib.sha256(other).hexdigest())
    assert obtain(corpus, None, told, quiet)["test"].read_bytes() == b"forged\n"


def test_files_out_of_a_mirrors_archive_are_checked(tmp_path: Path, site: Site) -> None:
    corpus = published(PTB, site, b"")
    site.files["/simple-examples.tgz"] = tarred(PENN | {"ptb.valid.txt": b"forged\n"})
    where = Where(folder=tmp_path, url=f"{site.url}/simple-examples.tgz")
    with pytest.raises(DataError, match=r"ptb.valid.txt must have the md5"):
        obtain(corpus, None, where, quiet)
    assert not (tmp_path / "ptb.valid.txt").exists()


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    corpus = replace(WIKITEXT_103, archive=Remote(name="w.zip", urls=("http://127.0.0.1:1/w.zip",)))
    where = Where(folder=tmp_path, again="`deqlm prepare wikitext-103 FOLDER --out OUT`")
    message = (
        r"cannot download w.zip: http://127.0.0.1:1/w.zip: .*refused.*\. "
        r"To prepare without downloading, put wiki.train.tokens, wiki.valid.tokens, "
        r"wiki.test.tokens into a folder and run `deqlm prepare wikitext-103 FOLDER --out OUT`\.$"
    )
    with pytest.raises(DataError, match=message):
        obtain(corpus, None, replace(where, folder=tmp_path / "new" / "source"), quiet)
    assert not (tmp_path / "new").exists()


def test_plain_files_of_wikitext_have_no_checksum(tmp_path: Path) -> None:
    where = Where(folder=tmp_path, url="http://127.0.0.1:1/files/")
    with pytest.raises(DataError, match="--url must name an archive for wikitext-103"):
        obtain(WIKITEXT_103, None, where, quiet)


def test_only_the_wanted_members_are_unpacked_wherever_they_say_they_go(tmp_path: Path) -> None:
    files = {"a.txt": b"a", "../b.txt": b"b", "evil.sh": b"x"}
    for i, data in enumerate((zipped(files, "../../"), tarred(files, "/etc/"))):
        (tmp_path / "archive").write_bytes(data)
        folder = tmp_path / "deep" / str(i)
        unpack(tmp_path / "archive", ["a.txt", "b.txt"], folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "a.txt": b"a", "b.txt": b"b"
        }  # fmt: skip
    assert not list(tmp_path.rglob("evil.sh"))


def test_links_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"must have one file called a.txt, it has no a.txt"):
        unpack(tmp_path / "archive", ["a.txt"], tmp_path)


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tarred({"a.txt": b"1", "x/a.txt": b"2"}))
    with pytest.raises(DataError, match=r"one file called a.txt, it has 2 files called a.txt"):
        unpack(tmp_path / "archive", ["a.txt"], tmp_path)


def test_an_archive_cut_off_after_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "ptb.tgz").write_bytes(tarred(PENN)[:40])
    with pytest.raises(DataError, match=r"archive .*ptb.tgz is damaged|neither a folder nor"):
        obtain(PTB, tmp_path / "ptb.tgz", Where(folder=tmp_path / "source"), quiet)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive(tmp_path: Path, pack: object) -> None:
    data = bytearray(pack({"a.txt": bytes(range(256)) * 40}))  # type: ignore[operator]
    for i in range(len(data) // 2, len(data) // 2 + 20):
        data[i] ^= 0x55
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(DataError, match=r"archive .* is damaged|cannot unpack"):
        unpack(tmp_path / "archive", ["a.txt"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
