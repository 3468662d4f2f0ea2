"""White-space separated words, in the vocabulary layout of the published checkpoints."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from deq_model.tokenizers.base import (
    EOS_TOKEN,
    UNK_TOKEN,
    Encoding,
    check_text,
    check_token_id,
)
from deq_model.tokenizers.errors import TokenizerFileError, UnknownWordError

VOCABULARY_FILE = "vocab.txt"
EOS_ID = 0

# \s and str.split() know the same white space; a newline is a token, the rest only separates.
_TOKEN = re.compile(r"\n|\S+")
_UNKNOWN = -1  # marks, while encoding, a word outside the vocabulary


class WordTokenizer:
    """One id per word, ``<eos>`` (id 0) per newline; words outside go to ``<unk>`` if it exists.

    A literal ``<eos>`` in the text is the token ``<eos>`` too, as in the published vocabulary.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Take the vocabulary, id by id.

        Raises:
            TokenizerFileError: ``words[0]`` is not ``<eos>``, or an entry is empty, repeated,
                or holds white space.
        """
        self._words = tuple(words)
        self._ids = _index(self._words)
        self._unk_id = self._ids.get(UNK_TOKEN)

    @classmethod
    def from_file(cls, path: Path) -> "WordTokenizer":
        """Read a vocabulary of one word a line, line number = id. Raises TokenizerFileError."""
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerFileError(f"cannot read vocabulary {path}: {error}") from error
        try:
            return cls(text.removesuffix("\n").split("\n"))
        except TokenizerFileError as error:
            raise TokenizerFileError(f"vocabulary {path}: {error}") from None

    @property
    def n_token(self) -> int:
        """Number of words, ``<eos>`` included."""
        return len(self._words)

    @property
    def eos_id(self) -> int:
        """Id of ``<eos>``: always 0."""
        return EOS_ID

    @property
    def unk_id(self) -> int | None:
        """Id of ``<unk>``, or None if it is not in the vocabulary."""
        return self._unk_id

    def encode(self, text: str) -> Encoding:
        """Split on white space; each newline is one ``<eos>``, a missing last one is not added."""
        return self.encode_from(check_text(text), offset=0)

    def encode_from(self, text: str, *, offset: int) -> Encoding:
        """Encode text whose first byte lies at byte ``offset`` of a longer one."""
        matches = list(_TOKEN.finditer(text))
        ids = [self._ids.get(match[0], _UNKNOWN) for match in matches]
        unknown = ids.count(_UNKNOWN)
        if unknown:
            if self._unk_id is None:
                raise UnknownWordError(matches[ids.index(_UNKNOWN)][0])
            ids = [self._unk_id if token_id == _UNKNOWN else token_id for token_id in ids]
        begin, end = _byte_offsets(text, matches, offset)
        return Encoding(ids=tuple(ids), begin=begin, end=end, unknown=unknown)

    def decode(self, ids: Sequence[int]) -> str:
        """Words joined by one space, ``<eos>`` as a newline without spaces around it."""
        decoder = self.stream_decoder()
        return "".join([decoder.feed(token_id) for token_id in ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The word in UTF-8, or a newline for ``<eos>``."""
        check_token_id(token_id, n_token=self.n_token)
        return b"\n" if token_id == EOS_ID else self._words[token_id].encode("utf-8")

    def stream_encoder(self) -> "WordStreamEncoder":
        """An encoder that holds back the last word until white space ends it."""
        return WordStreamEncoder(self)

    def stream_decoder(self, *, after: int | None = None) -> "WordStreamDecoder":
        """A decoder that puts a space before a word that follows a word."""
        return WordStreamDecoder(self, after=after)

    def save(self, folder: Path) -> None:
        """Write ``vocab.txt``."""
        text = "".join(f"{word}\n" for word in self._words)
        (folder / VOCABULARY_FILE).write_bytes(text.encode("utf-8"))


class WordStreamEncoder:
    """Stream form of ``WordTokenizer.encode``: a word is certain once white space follows it."""

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[str] = []  # parts of the unfinished word: joining late keeps this linear
        self._offset = 0  # byte offset of the first held character

    def feed(self, text: str) -> Encoding:
        """Tokens that are certain by now. After an error the stream is as it was before."""
        check_text(text)
        cut = len(text) - _last_word_length(text)
        if cut == 0:
            self._held.append(text)
            return Encoding()
        certain = "".join(self._held) + text[:cut]
        encoding = self._tokenizer.encode_from(certain, offset=self._offset)
        self._offset += len(certain.encode("utf-8"))
        self._held = [text[cut:]]
        return encoding

    def flush(self) -> Encoding:
        """The last word, if no white space ended it."""
        rest = "".join(self._held)
        encoding = self._tokenizer.encode_from(rest, offset=self._offset)
        self._offset += len(rest.encode("utf-8"))
        self._held = []
        return encoding


class WordStreamDecoder:
    """Stream form of ``WordTokenizer.decode``."""

    def __init__(self, tokenizer: WordTokenizer, *, after: int | None) -> None:
        self._tokenizer = tokenizer
        self._after_word = after is not None and after != tokenizer.eos_id

    def feed(self, token_id: int) -> str:
        """The word, with a space before it if the token before was a word as well."""
        text = self._tokenizer.token_bytes(token_id).decode("utf-8")
        is_word = token_id != self._tokenizer.eos_id
        joined = " " + text if is_word and self._after_word else text
        self._after_word = is_word
        return joined

    def flush(self) -> str:
        """Nothing: a word is never held back."""
        return ""


def build_word_vocabulary(source: Path | Iterable[str]) -> list[str]:
    """Words in the published order: ``<eos>``, then by falling count, ties by first appearance.

    Args:
        source: a UTF-8 text file, or its lines.
    """
    if isinstance(source, Path):
        with source.open(encoding="utf-8", newline="\n") as lines:
            return build_word_vocabulary(lines)
    counts: Counter[str] = Counter()
    for line in source:
        counts.update(line.split())
    counts.pop(EOS_TOKEN, None)
    # most_common sorts stably, and a Counter keeps its keys in order of first appearance.
    return [EOS_TOKEN, *(word for word, _ in counts.most_common())]


def _index(words: tuple[str, ...]) -> dict[str, int]:
    if words[:1] != (EOS_TOKEN,):
        first = repr(words[0]) if words else "nothing"
        raise TokenizerFileError(f"word 0 must be {EOS_TOKEN!r}, got {first}")
    ids: dict[str, int] = {}
    for token_id, word in enumerate(words):
        if word.split() != [word]:
            message = f"word {token_id} must be non-empty without white space, got {word!r}"
            raise TokenizerFileError(message)
        if ids.setdefault(word, token_id) != token_id:
            raise TokenizerFileError(f"word {token_id} {word!r} is also word {ids[word]}")
    ids["\n"] = EOS_ID  # no word can be a newline, so that one table serves both
    return ids


def _last_word_length(text: str) -> int:
    """Characters after the last white space."""
    if not text or text[-1].isspace():
        return 0
    return len(text.rsplit(maxsplit=1)[-1])


def _byte_offsets(
    text: str, matches: Sequence[re.Match[str]], offset: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes where the matches begin and end, ``offset`` being that of the text."""
    if text.isascii():
        begin = [offset + match.start() for match in matches]
        return tuple(begin), tuple([offset + match.end() for match in matches])
    begin, end, position = [], [], 0
    for match in matches:
        offset += len(text[position : match.start()].encode("utf-8"))
        begin.append(offset)
        offset += len(match[0].encode("utf-8"))
        end.append(offset)
        position = match.end()
    return tuple(begin), tuple(end)
