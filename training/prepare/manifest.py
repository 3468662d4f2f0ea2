"""``prepared.json``: what a folder of tokens was made from, and how."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from deq_model.files import write_whole
from training.errors import DataError

MANIFEST_FILE = "prepared.json"
FORMAT = 1
SPLITS: tuple["Split", ...] = ("train", "valid", "test")

Split = Literal["train", "valid", "test"]
_NONSENSE = (AttributeError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The text of a split, as it was when it was read.

    Attributes:
        name: of the file.
        size: in bytes.
        mtime_ns: time of its last change, in nanoseconds.
        sha256: of the file.
        begin: first byte that belongs to the split, in the unpacked text.
        end: byte after the last; None for the end.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """A split.

    Attributes:
        source: its text.
        tokens: how many it has.
        unknown: how many of them stand for words outside the vocabulary.
    """

    source: Source
    tokens: int
    unknown: int

    def __post_init__(self) -> None:
        if not (isinstance(self.tokens, int) and isinstance(self.unknown, int)):
            raise TypeError("tokens and unknown must be whole numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A prepared folder.

    Attributes:
        tokenizer: its fingerprint, 16 hexadecimal digits.
        n_token: size of the vocabulary.
        settings: what the tokenizer and the splits were made by.
        splits: train, valid, and test where there is one.
    """

    tokenizer: str
    n_token: int
    settings: dict[str, Any]
    splits: dict[Split, SplitInfo]

    def __post_init__(self) -> None:
        if not (isinstance(self.n_token, int) and isinstance(self.settings, dict)):
            raise TypeError("n_token must be a whole number, and settings keys with values")

    def save(self, folder: Path) -> None:
        """Writes ``prepared.json``, whole or not at all."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"
        write_whole(folder / MANIFEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads it. Raises DataError if there is none, or it is damaged or of another format."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{folder} is not a prepared folder: it has no {MANIFEST_FILE}; "
                "deqlm prepare makes such folders"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = values.pop("format")
        except (OSError, ValueError, *_NONSENSE) as error:
            raise DataError(f"{path} is damaged: {error}; prepare again") from None
        if found != FORMAT:
            raise DataError(
                f"{path} must have format {FORMAT}, got {found!r}; prepare again with this version"
            )
        try:
            splits = {name: _split(values["splits"][name]) for name in values["splits"]}
            return cls(**{**values, "splits": splits})
        except _NONSENSE as error:
            raise DataError(f"{path} is damaged: {error}; prepare again") from None


def _split(values: dict[str, Any]) -> SplitInfo:
    return SplitInfo(**{**values, "source": Source(**values["source"])})
