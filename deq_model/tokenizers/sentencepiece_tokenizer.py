"""Sentencepiece tokens over the exact text: lossless, and the same however the text is cut.

The text is first cut into short segments by a fixed rule (a word with the space before it, a run
of spaces, a newline), and each segment is encoded for itself. So no token depends on what follows
its segment, and long texts cost time in proportion to their length.
"""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import sentencepiece

from deq_model.tokenizers.base import EOS_TOKEN, Encoding, check_text, check_token_id
from deq_model.tokenizers.errors import TokenizerFileError

MODEL_FILE = "tokenizer.model"

_SPACE_MARK = "\u2581"  # how sentencepiece spells a space; a literal one must go as bytes
_MAX_WORD = 64  # characters: bounds what a stream holds back and what one segment costs
_MAX_SPACES = 16
_SEGMENT = re.compile(
    rf"\n| {{1,{_MAX_SPACES}}}(?= )| ?[^ \n{_SPACE_MARK}]{{1,{_MAX_WORD}}}| |{_SPACE_MARK}"
)
_CACHED_SEGMENTS = 1 << 13
"""Whose ids are kept: of English text five in six. A server's memory grows until they are there, by
2 MiB; by some 75 MiB, if words are made for it: of 64 characters that all become bytes.
"""


class SentencePieceTokenizer:
    """A sentencepiece model with byte pieces; ``decode(encode(text)) == text`` for every text."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        """Take a loaded model.

        Raises:
            TokenizerFileError: the model has no ``<eos>``, newline or byte pieces, or changes text.
        """
        self._processor = processor
        self._eos_id = _required_id(processor, EOS_TOKEN)
        self._byte_ids = [_required_id(processor, f"<0x{byte:02X}>") for byte in range(256)]
        self._newline_id = _required_id(processor, "\n")
        _check_keeps_text(processor)
        self._bytes = [_piece_bytes(processor, i) for i in range(processor.get_piece_size())]
        self._check_spelling()
        self._encode_segment = lru_cache(_CACHED_SEGMENTS)(self._compute_segment)

    @classmethod
    def from_file(cls, path: Path) -> "SentencePieceTokenizer":
        """Read a ``.model`` file. Raises TokenizerFileError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TokenizerFileError(f"cannot read tokenizer {path}: {error}") from error
        if not data:  # sentencepiece would take no bytes for no argument
            raise TokenizerFileError(f"tokenizer {path} is unusable: the file is empty")
        try:
            return cls(sentencepiece.SentencePieceProcessor(model_proto=data))
        except (RuntimeError, ValueError) as error:
            raise TokenizerFileError(f"tokenizer {path} is unusable: {error}") from error

    @property
    def n_token(self) -> int:
        """Number of pieces."""
        return len(self._bytes)

    @property
    def eos_id(self) -> int:
        """Id of ``<eos>``."""
        return self._eos_id

    @property
    def unk_id(self) -> int | None:
        """Id of ``<unk>``; never produced by ``encode``, as any character can go as bytes."""
        unk_id: int = self._processor.unk_id()
        return unk_id if unk_id >= 0 else None

    def encode(self, text: str) -> Encoding:
        """Tokens of a whole text; nothing is ever unknown."""
        encoder = self.stream_encoder()
        encoder.hold(text)
        return encoder.flush()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join([self.token_bytes(i) for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The piece's bytes; none for ``<eos>``, U+FFFD for ``<unk>``."""
        return self._bytes[check_token_id(token_id, n_token=self.n_token)]

    def encode_segments(self, segments: Sequence[str], *, offset: int) -> Encoding:
        """Encode whole segments, the first of which begins at byte ``offset`` of the text."""
        ids = [token_id for segment in segments for token_id in self._encode_segment(segment)]
        bounds = list(accumulate((len(self._bytes[i]) for i in ids), initial=offset))
        return Encoding(ids=tuple(ids), begin=tuple(bounds[:-1]), end=tuple(bounds[1:]))

    def stream_encoder(self) -> "SentencePieceStreamEncoder":
        """An encoder that holds back the last segment until it can grow no more."""
        return SentencePieceStreamEncoder(self)

    def stream_decoder(self, *, after: int | None = None) -> "SentencePieceStreamDecoder":
        """A decoder of UTF-8; spaces belong to the pieces, so that ``after`` changes nothing."""
        return SentencePieceStreamDecoder(self)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.model``."""
        (folder / MODEL_FILE).write_bytes(self._processor.serialized_model_proto())

    def _check_spelling(self) -> None:
        """Refuse models in which a piece that any text may need is of another kind."""
        needed = {self._newline_id: b"\n"}
        needed |= {token_id: bytes([byte]) for byte, token_id in enumerate(self._byte_ids)}
        for token_id, spelled in needed.items():
            if self._bytes[token_id] != spelled:
                raise TokenizerFileError(
                    f"piece {token_id} of the model must spell {spelled!r}, "
                    f"got {self._bytes[token_id]!r}"
                )

    def _compute_segment(self, segment: str) -> tuple[int, ...]:
        if segment == "\n":
            return (self._newline_id,)
        data = segment.encode("utf-8")
        ids = tuple(self._processor.encode(segment, out_type=int))
        if b"".join([self._bytes[i] for i in ids]) == data:
            return ids
        # Characters that sentencepiece itself gives a meaning (its space mark, NUL) go as bytes.
        return tuple([self._byte_ids[byte] for byte in data])


class SentencePieceStreamEncoder:
    """Stream form of ``SentencePieceTokenizer.encode``."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = ""
        self._offset = 0  # byte offset of the first held character

    def hold(self, text: str) -> None:
        """Take more text without encoding any."""
        self._held += check_text(text)

    def feed(self, text: str) -> Encoding:
        """Tokens of the segments that no later text can change."""
        self.hold(text)
        return self._encode(final=False)

    def flush(self) -> Encoding:
        """Tokens of the rest."""
        return self._encode(final=True)

    def _encode(self, *, final: bool) -> Encoding:
        segments: list[str] = []
        position = 0
        for match in _SEGMENT.finditer(self._held):
            if not final and not _is_certain(match):
                break
            segments.append(match[0])
            position = match.end()
        encoding = self._tokenizer.encode_segments(segments, offset=self._offset)
        self._held = self._held[position:]
        self._offset = encoding.end[-1] if encoding.end else self._offset
        return encoding


class SentencePieceStreamDecoder:
    """Stream form of ``SentencePieceTokenizer.decode``: holds back the start of a character."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _is_certain(match: re.Match[str]) -> bool:
    """Whether a segment stays as it is, whatever follows the end of the searched text."""
    text, end = match.string, match.end()
    if text[end - 1] in "\n" + _SPACE_MARK or end + 1 < len(text):
        return True
    if text[end - 1] == " ":  # a run's last space belongs to what follows: two more must be known
        return end < len(text) and text[end] != " "
    return end < len(text) or len(match[0].lstrip(" ")) == _MAX_WORD


def _required_id(processor: sentencepiece.SentencePieceProcessor, piece: str) -> int:
    token_id: int = processor.piece_to_id(piece)
    # A piece that is not there has the id of <unk>, which a damaged model has anywhere.
    is_known = 0 <= token_id < processor.get_piece_size()
    if not is_known or processor.id_to_piece(token_id) != piece:
        raise TokenizerFileError(f"the model has no piece {piece!r}")
    return token_id


def _check_keeps_text(processor: sentencepiece.SentencePieceProcessor) -> None:
    """Refuse models that add or drop spaces: their pieces would never spell the text."""
    for probe in ("a", " a", "a "):
        spelled = "".join(processor.encode(probe, out_type=str)).replace(_SPACE_MARK, " ")
        if not spelled.startswith("<0x") and spelled != probe:
            message = f"the model turns {probe!r} into {spelled!r}; it must keep spaces as they are"
            raise TokenizerFileError(message)


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token_id: int) -> bytes:
    piece: str = processor.id_to_piece(token_id)
    if processor.is_control(token_id):
        return b""
    if processor.is_unknown(token_id):
        return "\ufffd".encode()
    if processor.is_byte(token_id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE_MARK, " ").encode("utf-8")
