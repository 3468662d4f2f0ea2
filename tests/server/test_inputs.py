"""Inputs as tokens: offsets, unknown words, streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.word import WordTokenizer
from server.errors import InvalidFields, UnknownText
from server.inputs import StreamTokens, Tokens, encode, encode_text, only_unknown
from tests.server.tiny import SPM, word_tokenizer

WORDS = word_tokenizer()
PIECES = SentencePieceTokenizer.from_file(SPM)

texts = st.text(alphabet="the of\né <unk>zq", max_size=30)


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES], ids=["words", "pieces"])
@given(text=texts, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_a_stream_has_the_tokens_of_the_whole_text(tokenizer, text, cuts):
    stream, tokens, begin = StreamTokens(tokenizer), Tokens(), 0
    for end in [*sorted(cuts), len(text)]:
        tokens = tokens + stream.feed(text[begin:end])
        begin = max(begin, end)
        assert stream.held_from <= len(text[:begin].encode())
    tokens = tokens + stream.flush()
    assert tokens == encode_text(text, tokenizer, name="text")
    assert stream.held_from == len(text.encode())


class TestBoundsOfAStream:
    """A refused piece leaves the stream's offsets as they were."""

    def test_text_that_completes_no_token(self):
        stream = StreamTokens(WORDS, max_held_bytes=10)
        assert stream.feed("the of").ids == (WORDS.encode("the").ids)
        assert stream.feed("é" * 3).ids == ()
        problem = "text must complete a token within 10 bytes, got 12 without one"
        with pytest.raises(InvalidFields, match=problem):
            stream.feed("zzz")
        assert stream.held_from == 3

    def test_white_space_belongs_to_no_token_either(self):
        stream = StreamTokens(WORDS, max_held_bytes=10)
        stream.feed(" " * 10)
        with pytest.raises(InvalidFields, match="within 10 bytes, got 11"):
            stream.feed(" ")

    def test_tokens_of_one_piece(self):
        stream = StreamTokens(WORDS, max_tokens=3)
        assert len(stream.feed("\n\n\n")) == 3
        with pytest.raises(InvalidFields, match="text must be at most 3 tokens, got 4"):
            stream.feed("\n\n\n\n")
        assert stream.held_from == 3


def test_unknown_words_are_marked_and_the_unknown_tokens_own_name_is_not():
    tokens = encode_text("the zébra <unk> of", WORDS, name="text")
    assert tokens.unknown == {1}
    assert tokens.spans == ((0, 3), (4, 10), (11, 16), (17, 19))


def test_ids_and_text_join():
    joined = Tokens((5, 6)) + encode_text("the", WORDS, name="text")
    assert joined.spans == (None, None, (0, 3))
    assert joined.ids[:2] == (5, 6)


@pytest.mark.parametrize(
    ("text", "expected"), [("zq\nzz", True), ("zq the", False), ("\n", False), ("<unk>", False)]
)
def test_only_unknown(text, expected):
    assert only_unknown(encode_text(text, WORDS, name="text"), WORDS) is expected


async def test_unknown_text_is_told_by_field_and_count():
    with pytest.raises(UnknownText, match=r"input\.text must hold a word .*, got 2 unknown"):
        await encode("zz zq", WORDS, name="input", may_be_unknown=False)
    assert (await encode("zz zq", WORDS, name="input", may_be_unknown=True)).ids == (1, 1)


async def test_long_text_gives_the_same_tokens():
    long = "the zz " * 10_000
    tokens = await encode(long, WORDS, name="input", may_be_unknown=False)
    assert tokens == encode_text(long, WORDS, name="input.text")


async def test_white_space_alone_is_no_input():
    with pytest.raises(InvalidFields, match=r"input\.text must hold a token"):
        await encode("  \t", WORDS, name="input", may_be_unknown=True)


def test_a_vocabulary_without_unknown_token_tells_the_word():
    closed = WordTokenizer(["<eos>", "the"])
    with pytest.raises(InvalidFields, match="'zz' is not in the vocabulary"):
        encode_text("the zz", closed, name="input.text")
    stream = StreamTokens(closed)
    stream.feed("the ")
    with pytest.raises(InvalidFields, match="'zz'"):
        stream.feed("zz ")
    assert stream.feed("the ").spans == ((4, 7),), "the stream is as it was"
