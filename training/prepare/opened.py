"""Prepared folders, opened: arrays stay on disk and are mapped into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.load import load_tokenizer
from training.errors import DataError
from training.prepare.encode import Ids, id_dtype
from training.prepare.manifest import SPLITS, Manifest, Split
from training.vocabulary import tokenizer_fingerprint

_CHECKED = 1 << 22  # ids looked at in one go


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """A prepared folder.

    Attributes:
        tokenizer: of the ids.
        train: ``(n,)`` uint16 or int32, mapped into memory, read-only.
        valid: likewise.
        test: likewise; None where there is no such split.
        manifest: what it was made from.
    """

    tokenizer: Tokenizer
    train: Ids
    valid: Ids
    test: Ids | None
    manifest: Manifest

    def split(self, name: Split) -> Ids:
        """The ids of a split. Raises DataError if there is none."""
        ids: Ids | None = {"train": self.train, "valid": self.valid, "test": self.test}[name]
        if ids is None:
            raise DataError(f"split must be one of {', '.join(self.manifest.splits)}, got {name}")
        return ids


def ids_path(folder: Path, split: Split) -> Path:
    """The file of a split's tokens."""
    return folder / f"{split}.npy"


def open_prepared(folder: Path) -> PreparedData:
    """Opens what ``deqlm prepare`` made, and looks through all ids once.

    Raises:
        DataError: it is no such folder, of another format, or damaged.
        TokenizerError: its tokenizer is missing or damaged.
    """
    manifest = Manifest.load(folder)
    tokenizer = load_tokenizer(folder)
    found = tokenizer_fingerprint(tokenizer)
    if (found, tokenizer.n_token) != (manifest.tokenizer, manifest.n_token):
        raise DataError(
            f"the tokenizer in {folder} must be the one that its tokens were made with, "
            f"{manifest.tokenizer} ({manifest.n_token} entries), got {found} "
            f"({tokenizer.n_token}); prepare again"
        )
    ids = {name: open_ids(folder, name, manifest) for name in SPLITS if name in manifest.splits}
    for name in ("train", "valid"):
        if name not in ids:
            raise DataError(f"{folder} has no split {name}; prepare again")
    return PreparedData(
        tokenizer=tokenizer,
        train=ids["train"],
        valid=ids["valid"],
        test=ids.get("test"),
        manifest=manifest,
    )


def open_ids(
    folder: Path, split: Split, manifest: Manifest, *, mode: Literal["r", "c"] = "r"
) -> Ids:
    """The ids of a split as a memory map, looked through once.

    Args:
        folder: that has been prepared.
        split: which.
        manifest: of the folder.
        mode: r for a map that cannot be written to, c for one whose changes go nowhere.

    Raises:
        DataError: the file is missing or damaged.
    """
    ids = map_ids(folder, split, manifest, mode=mode)
    _check_ids(ids, ids_path(folder, split), n_token=manifest.n_token)
    return ids


def map_ids(
    folder: Path, split: Split, manifest: Manifest, *, mode: Literal["r", "c"] = "r"
) -> Ids:
    """As ``open_ids``, without looking at the ids."""
    path = ids_path(folder, split)
    try:
        ids: Ids = np.lib.format.open_memmap(path, mode=mode)
    # Damage shows as nearly any error: the header of such a file is a line of Python.
    except Exception as error:
        raise DataError(f"tokens {path} are missing or damaged: {error}; prepare again") from None
    expected = (id_dtype(manifest.n_token), (manifest.splits[split].tokens,))
    if (ids.dtype, ids.shape) != expected:
        raise DataError(
            f"tokens {path} must be {expected[0]} of shape {expected[1]}, got {ids.dtype} of shape "
            f"{ids.shape}; prepare again"
        )
    return ids


def _check_ids(ids: Ids, path: Path, *, n_token: int) -> None:
    """Reads the file instead of the map, whose pages would count as this process's memory."""
    with path.open("rb") as file:
        file.seek(getattr(ids, "offset", 0))
        for begin in range(0, len(ids), _CHECKED):
            part = np.fromfile(file, dtype=ids.dtype, count=min(_CHECKED, len(ids) - begin))
            if part.min() < 0 or part.max() >= n_token:
                at = int(np.flatnonzero((part < 0) | (part >= n_token))[0])
                raise DataError(
                    f"ids in {path} must be in [0, {n_token}), got {int(part[at])} at position "
                    f"{begin + at}; prepare again"
                )
