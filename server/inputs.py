"""Inputs as tokens: ids, where each lies in the text, and which words were unknown."""

import asyncio
from dataclasses import dataclass, field

from deq_model.tokenizers.base import Encoding, StreamEncoder, Tokenizer
from deq_model.tokenizers.errors import TokenizerError
from server.bounds import InputValue
from server.errors import InvalidFields, UnknownText

LONG_TEXT = 20_000
"""Characters from which a text is encoded beside the event loop: a few milliseconds."""

Span = tuple[int, int]
"""Bytes [begin, end) of a text."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of an input.

    Attributes:
        ids: the tokens.
        spans: bytes [begin, end) of each in the UTF-8 text, None for one that was given as an id;
            empty when all were.
        unknown: positions of the tokens whose text is outside the vocabulary.
    """

    ids: tuple[int, ...] = ()
    spans: tuple[Span | None, ...] = ()
    unknown: frozenset[int] = field(default_factory=frozenset)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: "Tokens") -> "Tokens":
        spans: tuple[Span | None, ...] = ()
        if self.spans or other.spans:
            spans = self._all_spans() + other._all_spans()
        moved = frozenset(index + len(self) for index in other.unknown)
        return Tokens(self.ids + other.ids, spans, self.unknown | moved)

    def first(self, count: int) -> "Tokens":
        """The first ``count`` of them."""
        if count >= len(self):
            return self
        unknown = frozenset(index for index in self.unknown if index < count)
        return Tokens(self.ids[:count], self.spans[:count], unknown)

    def after(self, count: int) -> "Tokens":
        """Those after the first ``count``."""
        unknown = frozenset(index - count for index in self.unknown if index >= count)
        return Tokens(self.ids[count:], self.spans[count:], unknown)

    def _all_spans(self) -> tuple[Span | None, ...]:
        return self.spans or (None,) * len(self.ids)


async def encode(
    value: InputValue | None, tokenizer: Tokenizer, *, name: str, may_be_unknown: bool
) -> Tokens:
    """Encodes an input, a long one on another thread.

    Args:
        value: text or ids, already checked; None for no tokens.
        tokenizer: of the model.
        name: the input's path in the request.
        may_be_unknown: whether a text of only unknown words is taken.

    Raises:
        InvalidFields: the text holds no token, or one that cannot be encoded.
        UnknownText: every word is unknown.
    """
    if value is None:
        return Tokens()
    if isinstance(value, tuple):
        return Tokens(value)
    if len(value) < LONG_TEXT:
        tokens = encode_text(value, tokenizer, name=f"{name}.text")
    else:
        tokens = await asyncio.to_thread(encode_text, value, tokenizer, name=f"{name}.text")
    if not tokens.ids:
        raise InvalidFields([(f"{name}.text", f"{name}.text must hold a token, got white space")])
    if not may_be_unknown and only_unknown(tokens, tokenizer):
        raise UnknownText(f"{name}.text", len(tokens.unknown))
    return tokens


def encode_text(text: str, tokenizer: Tokenizer, *, name: str) -> Tokens:
    """Encodes a text; none or only unknown words are taken. Raises InvalidFields."""
    try:
        encoding = tokenizer.encode(text)
    except TokenizerError as error:
        raise InvalidFields([(name, f"{name}: {error}")]) from None
    return _with_unknown(encoding, tokenizer, text.encode("utf-8") if encoding.unknown else b"", 0)


def only_unknown(tokens: Tokens, tokenizer: Tokenizer) -> bool:
    """Whether there are unknown words, and beside them nothing but line ends."""
    known = (i for i in range(len(tokens.ids)) if i not in tokens.unknown)
    return bool(tokens.unknown) and all(tokens.ids[i] == tokenizer.eos_id for i in known)


class StreamTokens:
    """Tokens of text that comes in pieces, cut anywhere; offsets count from the stream's start."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        max_held_bytes: int | None = None,
    ) -> None:
        """Begin with no text.

        Args:
            tokenizer: of the model.
            max_tokens: most that one piece may complete; None for any number.
            max_held_bytes: longest text that may complete none; None for any length.
        """
        self._tokenizer = tokenizer
        self._max_tokens, self._max_held_bytes = max_tokens, max_held_bytes
        self._encoder: StreamEncoder = tokenizer.stream_encoder()
        self._held = b""  # UTF-8 of the text from which no token has come yet
        self._begin = 0  # offset of its first byte

    def feed(self, text: str) -> Tokens:
        """Tokens that are certain by now.

        Raises:
            InvalidFields: of a piece too large, or one that cannot be encoded; the offsets are then
                as they were, but no more text can follow.
        """
        try:
            encoding = self._encoder.feed(text)
        except TokenizerError as error:
            raise InvalidFields([("text", f"text: {error}")]) from None
        data = text.encode("utf-8")
        self._check_bounds(encoding, len(data))
        self._held += data
        return self._take(encoding)

    def _check_bounds(self, encoding: Encoding, size: int) -> None:
        most, longest = self._max_tokens, self._max_held_bytes
        if most is not None and len(encoding) > most:
            raise InvalidFields(
                [("text", f"text must be at most {most} tokens, got {len(encoding)}")]
            )
        end = encoding.end[-1] if encoding.end else self._begin
        held = self._begin + len(self._held) + size - end
        if longest is not None and held > longest:
            bound = f"must complete a token within {longest} bytes"
            raise InvalidFields([("text", f"text {bound}, got {held} without one")])

    def flush(self) -> Tokens:
        """Tokens of what was held back. Raises InvalidFields."""
        try:
            encoding = self._encoder.flush()
        except TokenizerError as error:
            raise InvalidFields([("text", f"text: {error}")]) from None
        tokens = self._take(encoding)
        self._begin += len(self._held)  # white space at the end belongs to no token
        self._held = b""
        return tokens

    @property
    def held_from(self) -> int:
        """Bytes of the stream's text before what is held back."""
        return self._begin

    def _take(self, encoding: Encoding) -> Tokens:
        tokens = _with_unknown(encoding, self._tokenizer, self._held, self._begin)
        if encoding.end:
            self._held = self._held[encoding.end[-1] - self._begin :]
            self._begin = encoding.end[-1]
        return tokens


def _with_unknown(encoding: Encoding, tokenizer: Tokenizer, text: bytes, offset: int) -> Tokens:
    """Marks unknown words; ``text`` begins at byte ``offset`` of what the spans count in."""
    spans = tuple(zip(encoding.begin, encoding.end, strict=True))
    unknown: frozenset[int] = frozenset()
    unk_id = tokenizer.unk_id
    if encoding.unknown and unk_id is not None:
        # The name of the unknown token may stand in the text itself: that is no unknown word.
        name = tokenizer.token_bytes(unk_id)
        unknown = frozenset(
            index
            for index, (begin, end) in enumerate(spans)
            if encoding.ids[index] == unk_id and text[begin - offset : end - offset] != name
        )
    return Tokens(encoding.ids, spans, unknown)
