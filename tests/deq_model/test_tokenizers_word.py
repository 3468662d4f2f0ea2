"""Word vocabulary: order, white space, unknown words, streams."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.errors import (
    InvalidTextError,
    InvalidTokenIdError,
    TokenizerFileError,
    UnknownWordError,
)
from deq_model.tokenizers.word import WordTokenizer, build_word_vocabulary
from tests.deq_model.tokenizer_streams import cut, feed_all

WORDS = ("<eos>", "the", "<unk>", "naïve", "cat", "日本")
TOKENIZER = WordTokenizer(WORDS)
WITHOUT_UNK = WordTokenizer(("<eos>", "the", "cat"))

words = st.sampled_from((*WORDS[1:], "dog", "🙂", "cat."))
spaces = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x1c", "\x85", "\u3000", ""])
texts = st.lists(st.one_of(words, spaces)).map("".join)


def test_newlines_are_eos_and_carry_their_own_span() -> None:
    encoding = TOKENIZER.encode("the  naïve\n\ncat")
    assert encoding.ids == (1, 3, 0, 0, 4)
    assert encoding.begin == (0, 5, 11, 12, 13)
    assert encoding.end == (3, 11, 12, 13, 16)
    assert encoding.unknown == 0


def test_unknown_words_become_unk_and_are_counted() -> None:
    encoding = TOKENIZER.encode("the dog <unk> THE\n")
    assert encoding.ids == (1, 2, 2, 2, 0)
    assert encoding.unknown == 2


def test_unknown_word_without_unk_is_named() -> None:
    with pytest.raises(UnknownWordError, match=r"word 'dög' is not in the vocabulary") as caught:
        WITHOUT_UNK.encode("the dög cat")
    assert caught.value.word == "dög"


@pytest.mark.parametrize("text", ["", " \t\r "])
def test_text_without_words_has_no_tokens(text: str) -> None:
    assert TOKENIZER.encode(text).ids == ()


def test_every_white_space_of_str_split_separates() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isspace():
            expected = (4, 0, 4) if character == "\n" else (4, 4)
            assert TOKENIZER.encode(f"cat{character}cat").ids == expected, hex(code)
    assert TOKENIZER.encode("cat\u200bcat").unknown == 1  # zero width space is no white space


@given(texts)
def test_spans_hold_the_words_and_nothing_lies_between(text: str) -> None:
    data = text.encode()
    encoding = TOKENIZER.encode(text)
    spans = list(zip(encoding.begin, encoding.end, strict=True))
    surfaces = [data[begin:end].decode() for begin, end in spans]
    assert surfaces == re.findall(r"\n|[^\s]+", text)
    assert sum(surface not in (*WORDS, "\n") for surface in surfaces) == encoding.unknown


@given(st.lists(st.integers(0, len(WORDS) - 1)))
def test_encoding_the_decoded_ids_returns_them(ids: list[int]) -> None:
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).ids == tuple(ids)


def test_decoding_puts_spaces_between_words_only() -> None:
    assert TOKENIZER.decode([1, 4, 0, 0, 1, 4, 0]) == "the cat\n\nthe cat\n"


@given(texts, st.lists(st.integers(0, 60)))
def test_stream_encoding_equals_encoding_the_whole(text: str, cuts: list[int]) -> None:
    assert feed_all(TOKENIZER.stream_encoder(), cut(text, cuts)) == TOKENIZER.encode(text)


def test_stream_returns_words_as_soon_as_they_are_certain() -> None:
    encoder = TOKENIZER.stream_encoder()
    assert encoder.feed("the c").ids == (1,)
    assert encoder.feed("a").ids == ()
    assert encoder.feed("t\n").ids == (4, 0)
    assert encoder.flush().ids == ()


def test_a_failed_feed_leaves_the_stream_as_it_was() -> None:
    encoder = WITHOUT_UNK.stream_encoder()
    assert encoder.feed("the c").ids == (1,)
    with pytest.raises(UnknownWordError, match="'cow'"):
        encoder.feed("ow the")
    assert encoder.feed("at the").ids == (2,)
    assert encoder.flush().begin == (8,)


@given(st.lists(st.integers(0, len(WORDS) - 1)))
def test_stream_decoding_equals_decoding_the_whole(ids: list[int]) -> None:
    decoder = TOKENIZER.stream_decoder()
    text = "".join(decoder.feed(token_id) for token_id in ids) + decoder.flush()
    assert text == TOKENIZER.decode(ids)


@pytest.mark.parametrize(("after", "expected"), [(None, "the"), (0, "the"), (4, " the")])
def test_stream_decoding_continues_a_text(after: int | None, expected: str) -> None:
    assert TOKENIZER.stream_decoder(after=after).feed(1) == expected


@pytest.mark.parametrize("token_id", [-1, len(WORDS)])
def test_ids_out_of_range_are_refused(token_id: int) -> None:
    with pytest.raises(InvalidTokenIdError, match=rf"must be in \[0, 6\), got {token_id}"):
        TOKENIZER.decode([1, token_id])


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidTextError, match=r"lone surrogate U\+D83D at character 4"):
        TOKENIZER.encode("the \ud83d cat")


def test_vocabulary_order_is_eos_then_count_then_first_appearance(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("b a c\n\na\u2028b <eos> d\r\na\x1cé".encode())
    expected = ["<eos>", "a", "b", "c", "d", "é"]
    assert build_word_vocabulary(path) == expected
    assert build_word_vocabulary(["b a c\n", "a b d\n", "a é"]) == expected


def test_saved_vocabulary_is_one_word_a_line(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    path = tmp_path / "vocab.txt"
    assert path.read_bytes() == "<eos>\nthe\n<unk>\nnaïve\ncat\n日本\n".encode()
    loaded = WordTokenizer.from_file(path)
    assert (loaded.n_token, loaded.eos_id, loaded.unk_id) == (6, 0, 2)
    assert [loaded.token_bytes(i).decode() for i in range(6)] == ["\n", *WORDS[1:]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"word 0 must be '<eos>', got ''"),
        (b"the\n<eos>\n", r"word 0 must be '<eos>', got 'the'"),
        (b"<eos>\n\nthe\n", r"word 1 must be non-empty without white space, got ''"),
        (b"<eos>\r\nthe\r\n", r"word 0 must be '<eos>', got '<eos>\\r'"),
        (b"<eos>\na b\n", r"word 1 must be .* got 'a b'"),
        (b"<eos>\na\nb\na\n", r"word 3 'a' is also word 1"),
        (b"<eos>\n\xff\n", r"cannot read vocabulary .*vocab.txt: 'utf-8' codec"),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    with pytest.raises(TokenizerFileError, match=message):
        WordTokenizer.from_file(path)
