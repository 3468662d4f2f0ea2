"""Texts that are sent: so many words from somewhere in a file, as they stand there."""

import lzma
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_WORD: Final = re.compile(r"\S+")
_LEAST_WORDS: Final = 10
_MOST_BYTES: Final = 1 << 26
"""Of a text, unpacked: each process has all of it, and where its words begin."""


class Texts:
    """Cuts texts out of one."""

    def __init__(self, text: str) -> None:
        """Take the text. Raises ValueError if it has hardly any words."""
        self._text = text
        self._spans = [match.span() for match in _WORD.finditer(text)]
        if len(self._spans) < _LEAST_WORDS:
            raise ValueError(
                f"text must have at least {_LEAST_WORDS} words, got {len(self._spans)}"
            )

    @classmethod
    def of(cls, path: Path | None) -> "Texts":
        """Reads a file, plain or .xz; None for the one that comes along. Raises ValueError."""
        source: Traversable = files("loadtest") / "text.txt.xz" if path is None else path
        try:
            with source.open("rb") as file:
                unpacked = lzma.open(file) if source.name.endswith(".xz") else file
                raw = unpacked.read(_MOST_BYTES + 1)
            text = raw[:_MOST_BYTES].decode("utf-8")
        except (lzma.LZMAError, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"text in {path} is damaged or not UTF-8: {error}") from None
        except OSError as error:
            raise ValueError(f"text cannot be read from {path}: {error.strerror}") from None
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"text must be at most {_MOST_BYTES} bytes long, {path} has more")
        return cls(text)

    def cut(self, begin: int, words: int) -> str:
        """So many words from the one with that number on, with what lies between them."""
        return "".join(self.pieces(begin, words, words))

    def pieces(self, begin: int, words: int, piece: int) -> list[str]:
        """The same in pieces of so many words; joined they are the text."""
        cut = []
        begin %= len(self._spans)
        while words > 0:  # a text longer than the file goes on at its begin
            count = min(words, max(piece, 1), len(self._spans) - begin)
            last = begin + count
            end = self._spans[last][0] if last < len(self._spans) else len(self._text)
            cut.append(self._text[self._spans[begin][0] : end])
            begin, words = last % len(self._spans), words - count
        return cut
