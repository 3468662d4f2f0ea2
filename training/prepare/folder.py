"""Making a prepared folder, once: a second time is over as soon as nothing is found changed."""

import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deq_model.files import write_whole
from deq_model.tokenizers.base import Tokenizer
from training.errors import DataError
from training.lock import locked
from training.prepare.encode import encode, id_dtype, write_ids
from training.prepare.manifest import MANIFEST_FILE, SPLITS, Manifest, Source, Split, SplitInfo
from training.prepare.opened import ids_path, map_ids
from training.prepare.text import Advance, Scan, Text, file_sha256, scan, split_off
from training.vocabulary import (
    TOKENIZER_FILES,
    TokenizerPlan,
    build_tokenizer,
    open_tokenizer,
    tokenizer_bytes,
    tokenizer_fingerprint,
)

_LOG = logging.getLogger(__name__)
_UNFINISHED = ".preparing"
"""Says, in a folder without manifest, that what is there was half made here."""

Remake = Literal["never", "changed", "always"]
"""When to replace what is in the folder; never refuses where something has changed."""

Progress = Callable[[str, int], Advance]
"""Begins a task of so many bytes; what it returns is told how many more are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is in the folder now.

    Attributes:
        manifest: of the folder.
        made: False where it was there already.
    """

    manifest: Manifest
    made: bool


def prepare_texts(
    texts: Mapping[Split, Path],
    out: Path,
    plan: TokenizerPlan,
    *,
    valid_share: float = 0.0,
    remake: Remake = "never",
    progress: Progress | None = None,
) -> Outcome:
    """Makes a prepared folder of texts, or finds that it is there.

    Args:
        texts: file of each split; test may be missing, and valid where there is a ``valid_share``.
        out: folder to write.
        plan: which tokenizer to use.
        valid_share: share of the training text, from its end, that is the valid split.
        remake: when to replace what is in ``out``.
        progress: is told what is being done.

    Raises:
        DataError: a text is missing, unusable or changed, or the folder cannot be written.
        TokenizerError: the tokenizer is unusable, or cannot be made.
    """
    job = _Job(
        texts=texts, out=out, plan=plan, valid_share=valid_share, progress=progress or _silent
    )
    try:
        return _prepare(job, remake)
    except OSError as error:
        where = error.filename or out
        raise DataError(f"cannot prepare {out}: {where}: {error.strerror or error}") from None


def _prepare(job: "_Job", remake: Remake) -> Outcome:
    if remake != "always" and (found := job.find(refuse=remake == "never")) is not None:
        return Outcome(manifest=found, made=False)
    job.check_files()
    if remake != "always":
        job.check_own()
    scans = job.scan()  # before anything is written
    with locked(job.out):
        # Another process may have made it while this one waited for the lock.
        if remake != "always" and (found := job.find(refuse=False)) is not None:
            return Outcome(manifest=found, made=False)
        return Outcome(manifest=job.make(scans), made=True)


@dataclass(frozen=True, slots=True)
class _Scanned:
    """A file's state before it was read, and what reading it told."""

    stat: os.stat_result
    scan: Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What ``prepare_texts`` is given."""

    texts: Mapping[Split, Path]
    out: Path
    plan: TokenizerPlan
    valid_share: float
    progress: Progress

    def check_files(self) -> None:
        """Raises DataError unless every text is a file, and none of those to be written."""
        written = {path.resolve() for path in self._files()}
        for split, path in self.texts.items():
            _check_file(split, path)
            if path.resolve() in written:
                raise DataError(f"{split} text {path} would be overwritten; name another folder")

    def check_own(self) -> None:
        """Raises DataError where the folder has files of somebody else's under our names."""
        own = any((self.out / name).exists() for name in (MANIFEST_FILE, _UNFINISHED))
        foreign = [path for path in self._files() if path.exists()]
        if foreign and not own:
            raise DataError(
                f"{foreign[0]} was not made by deqlm prepare; name another folder, or replace it "
                "by --force true"
            )

    def find(self, *, refuse: bool) -> Manifest | None:
        """What is in the folder, if it was made from the same; else None, or DataError."""
        if not (self.out / MANIFEST_FILE).exists():
            return None
        try:
            manifest = Manifest.load(self.out)
            self._check_settings(manifest)
            self._check_sources(manifest)
            self._check_outputs(manifest)
        except DataError as error:
            if refuse:
                raise DataError(
                    f"{error}; prepare again by --force true, or into another folder"
                ) from None
            _LOG.info("%s; preparing again", error)
            return None
        return manifest

    def _check_settings(self, manifest: Manifest) -> None:
        wanted, found = self._settings(), manifest.settings
        for name in wanted | found:
            if wanted.get(name) != found.get(name):
                raise DataError(
                    f"{self.out} was prepared with --{name.replace('_', '-')} {found.get(name)}, "
                    f"got {wanted.get(name)}"
                )

    def _settings(self) -> dict[str, Any]:
        shared: dict[str, Any] = {"valid_share": self.valid_share}
        plan = self.plan
        if plan.tokenizer is not None:
            return shared | {"tokenizer": tokenizer_fingerprint(open_tokenizer(plan.tokenizer))}
        made = {"tokenizer": None, "tokenizer_kind": plan.kind, "vocab_size": plan.vocab_size}
        return shared | made | ({"seed": plan.seed} if plan.kind == "sentencepiece" else {})

    def _check_sources(self, manifest: Manifest) -> None:
        wanted = self._sources()
        if wanted.keys() != manifest.splits.keys():
            raise DataError(
                f"{self.out} was prepared with the splits {', '.join(manifest.splits)}, got "
                f"{', '.join(wanted)}"
            )
        for split, path in wanted.items():
            _check_source(split, path, manifest.splits[split].source)

    def _sources(self) -> dict[Split, Path]:
        paths = dict(self.texts) | ({"valid": self.texts["train"]} if self.valid_share else {})
        return {split: paths[split] for split in SPLITS if split in paths}

    def _check_outputs(self, manifest: Manifest) -> None:
        if not any((self.out / name).is_file() for name in TOKENIZER_FILES):
            raise DataError(f"{self.out} has lost its tokenizer")
        for split in manifest.splits:
            map_ids(self.out, split, manifest)

    def scan(self) -> dict[Path, "_Scanned"]:
        """Reads every text through. Raises DataError if one is unusable."""
        paths = dict.fromkeys(self.texts.values())
        return {
            path: _Scanned(path.stat(), scan(path, self._begin("reading", path))) for path in paths
        }

    def make(self, scans: Mapping[Path, "_Scanned"]) -> Manifest:
        """Writes the folder."""
        texts = self._cut(scans)
        train = texts["train"]
        tokenizer = build_tokenizer(self.plan, train, self._begin("counting", train.path))
        (self.out / _UNFINISHED).touch()
        self._clear()
        splits = {
            split: self._encode(split, text, tokenizer, scans[text.path])
            for split, text in texts.items()
        }
        self._write_tokenizer(tokenizer)
        manifest = Manifest(
            tokenizer=tokenizer_fingerprint(tokenizer),
            n_token=tokenizer.n_token,
            settings=self._settings(),
            splits=splits,
        )
        manifest.save(self.out)  # last: a folder without it is no prepared one
        (self.out / _UNFINISHED).unlink()
        return manifest

    def _encode(
        self, split: Split, text: Text, tokenizer: Tokenizer, scanned: "_Scanned"
    ) -> SplitInfo:
        counts = write_ids(
            ids_path(self.out, split),
            encode(text, tokenizer, self._begin("encoding", text.path)),
            dtype=id_dtype(tokenizer.n_token),
        )
        _check_unchanged(text.path, scanned.stat)
        source = Source(
            name=text.path.name,
            size=scanned.stat.st_size,
            mtime_ns=scanned.stat.st_mtime_ns,
            sha256=scanned.scan.sha256,
            begin=text.begin,
            end=text.end,
        )
        return SplitInfo(source=source, tokens=counts.tokens, unknown=counts.unknown)

    def _cut(self, scans: Mapping[Path, "_Scanned"]) -> dict[Split, Text]:
        texts = {split: Text(path=path) for split, path in self.texts.items()}
        if self.valid_share:
            train = texts["train"]
            texts["train"], texts["valid"] = split_off(
                train, self.valid_share, size=scans[train.path].scan.size
            )
        return {split: texts[split] for split in SPLITS if split in texts}

    def _begin(self, what: str, path: Path) -> Advance:
        size = path.stat().st_size if Text(path=path).plain else 0  # unpacked, nobody knows
        return self.progress(f"{what} {path.name}", size)

    def _files(self) -> list[Path]:
        """All that is written, the manifest first: without it the rest does not count."""
        names = [MANIFEST_FILE, *TOKENIZER_FILES]
        return [*(self.out / name for name in names), *(ids_path(self.out, s) for s in SPLITS)]

    def _clear(self) -> None:
        for path in self._files():
            path.unlink(missing_ok=True)
            for stale in self.out.glob(f".{path.name}.*.tmp"):  # of a process that was killed
                stale.unlink(missing_ok=True)

    def _write_tokenizer(self, tokenizer: Tokenizer) -> None:
        name, _, content = tokenizer_bytes(tokenizer).partition(b"\0")
        write_whole(self.out / name.decode(), lambda path: path.write_bytes(content))


def _check_file(split: Split, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"cannot read {split} text {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):  # a text is read twice and more, which a pipe cannot be
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DataError(f"{split} text {path} must be a file, got {what}")


def _check_source(split: Split, path: Path, source: Source) -> None:
    """Size and time decide; where only the time differs, the contents do."""
    if not path.exists():
        if path.name == source.name:
            _LOG.info("%s text %s is gone; its tokens are there", split, path)
            return
        raise DataError(f"cannot read {split} text {path}: no such file")
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) == (source.size, source.mtime_ns):
        return
    if now.st_size != source.size or file_sha256(path) != source.sha256:
        raise DataError(f"{split} text {path} has changed since it was prepared")


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DataError(f"text {path} changed while it was being prepared; try again")


def _silent(what: str, size: int) -> Advance:
    return lambda read: None
