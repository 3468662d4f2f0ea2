"""Sentencepiece: lossless for every text, and the same however the text is cut."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.errors import (
    InvalidTextError,
    InvalidTokenIdError,
    TokenizerFileError,
    TokenizerTrainingError,
)
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.train import train_sentencepiece
from tests.deq_model.tokenizer_streams import cut, feed_all

LINES = [
    "To be, or not to be, that is the question:",
    "    Whether 'tis nobler in the mind to suffer",
    "The slings and arrows of outrageous fortune,",
    "Or to take arms against a sea of troubles",
    "And by opposing end them. To die\u2014to sleep,",
    "No more;  and by a sleep to say we end",
]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "train.txt").write_text("\n".join(LINES * 5), encoding="utf-8")
    path = folder / "tokenizer.model"
    train_sentencepiece(folder / "train.txt", path, vocab_size=310)
    return path


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.from_file(model_path)


# Pieces that meet the special cases: spaces, newlines, the space mark, NUL, spelled control pieces.
odd = st.sampled_from(
    [
        *(" ", "   ", " " * 20, "\n", "\r\n", "\t", "\u2581", " \u2581", "\0", "<eos>", "<unk>"),
        *(
            "<0x41>",
            "to",
            " be",
            "the ",
            "x" * 70,
            "é",
            "🙂",
            "日本語",
            "\ufeff",
            "\u0301",
            "\u3000",
        ),
    ]
)
characters = st.characters(exclude_categories=["Cs"])
texts = st.one_of(
    st.text(characters), st.lists(odd).map("".join), st.lists(odd | characters).map("".join)
)


@given(text=texts)
def test_decoding_returns_the_text(tokenizer: SentencePieceTokenizer, text: str) -> None:
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert encoding.unknown == 0
    assert tokenizer.unk_id not in encoding.ids
    assert tokenizer.eos_id not in encoding.ids


@given(text=texts)
def test_spans_cover_the_text_byte_by_byte(tokenizer: SentencePieceTokenizer, text: str) -> None:
    data, encoding = text.encode(), tokenizer.encode(text)
    assert encoding.begin == (0, *encoding.end)[: len(encoding)]
    assert (encoding.end or (0,))[-1] == len(data)
    for token_id, begin, end in zip(encoding.ids, encoding.begin, encoding.end, strict=True):
        assert tokenizer.token_bytes(token_id) == data[begin:end]


@given(text=texts, cuts=st.lists(st.integers(0, 120)))
def test_stream_encoding_equals_encoding_the_whole(
    tokenizer: SentencePieceTokenizer, text: str, cuts: list[int]
) -> None:
    assert feed_all(tokenizer.stream_encoder(), cut(text, cuts)) == tokenizer.encode(text)


@given(text=texts)
def test_stream_encoding_character_by_character(
    tokenizer: SentencePieceTokenizer, text: str
) -> None:
    assert feed_all(tokenizer.stream_encoder(), text) == tokenizer.encode(text)


def test_stream_returns_words_as_soon_as_they_are_certain(
    tokenizer: SentencePieceTokenizer,
) -> None:
    encoder = tokenizer.stream_encoder()
    fed = [tokenizer.decode(encoder.feed(piece).ids) for piece in ("to b", "e ", "or\n", "x")]
    assert fed == ["to", " be", " or\n", ""]
    assert tokenizer.decode(encoder.flush().ids) == "x"


def test_stream_without_spaces_is_not_held_back_for_ever(
    tokenizer: SentencePieceTokenizer,
) -> None:
    encoder = tokenizer.stream_encoder()
    returned = sum(len(tokenizer.decode(encoder.feed("語" * 10).ids)) for _ in range(100))
    assert returned >= 1000 - 64


@given(ids=st.lists(st.integers(0, 309)))
def test_stream_decoding_equals_decoding_the_whole(
    tokenizer: SentencePieceTokenizer, ids: list[int]
) -> None:
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.feed, ids)) + decoder.flush() == tokenizer.decode(ids)


def test_bytes_of_one_character_are_held_back(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("🙂").ids
    decoder = tokenizer.stream_decoder()
    assert [decoder.feed(token_id) for token_id in ids] == ["", "", "", "🙂"]
    decoder.feed(ids[0])
    assert decoder.flush() == "\ufffd"


def test_special_tokens(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.n_token, tokenizer.eos_id, tokenizer.unk_id) == (310, 0, 1)
    assert tokenizer.token_bytes(0) == b""
    assert tokenizer.token_bytes(1) == "\ufffd".encode()
    assert len(tokenizer.encode("\n\n").ids) == 2


@pytest.mark.parametrize("token_id", [-1, 310])
def test_ids_out_of_range_are_refused(tokenizer: SentencePieceTokenizer, token_id: int) -> None:
    with pytest.raises(InvalidTokenIdError, match=rf"must be in \[0, 310\), got {token_id}"):
        tokenizer.decode([5, token_id])


def test_a_lone_surrogate_is_refused(tokenizer: SentencePieceTokenizer) -> None:
    encoder = tokenizer.stream_encoder()
    encoder.feed("to b")
    with pytest.raises(InvalidTextError, match=r"lone surrogate U\+DC80 at character 2"):
        encoder.feed("e \udc80")
    assert tokenizer.decode(encoder.flush().ids) == " b"


def test_training_is_reproducible(model_path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.model"
    train_sentencepiece(model_path.with_name("train.txt"), again, vocab_size=310)
    assert again.read_bytes() == model_path.read_bytes()


@pytest.mark.parametrize("vocab_size", [100, 50_000])
def test_impossible_vocabulary_sizes_are_refused(
    model_path: Path, tmp_path: Path, vocab_size: int
) -> None:
    target = tmp_path / "tokenizer.model"
    with pytest.raises(TokenizerTrainingError, match=f"cannot train {vocab_size} tokens on"):
        train_sentencepiece(model_path.with_name("train.txt"), target, vocab_size=vocab_size)
    assert not target.exists()


def test_saved_model_is_the_one_loaded(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = SentencePieceTokenizer.from_file(tmp_path / "tokenizer.model")
    assert loaded.encode(LINES[1]) == tokenizer.encode(LINES[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": False}, r"no piece '<0x00>'"),
        ({"user_defined_symbols": []}, r"no piece '\\n'"),
        ({"eos_piece": "</s>"}, r"no piece '<eos>'"),
        ({"add_dummy_prefix": True}, r"turns 'a' into ' a'"),
    ],
)
def test_models_that_lose_text_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    lossless: dict[str, object] = {
        "eos_piece": "<eos>",
        "byte_fallback": True,
        "user_defined_symbols": ["\n"],
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    }
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 5),
            model_writer=model,
            vocab_size=310,
            hard_vocab_limit=False,
            minloglevel=2,
            **(lossless | options),
        )
    with pytest.raises(TokenizerFileError, match=message):
        SentencePieceTokenizer.from_file(path)


def test_a_damaged_model_without_unk_and_newline(tmp_path: Path, model_path: Path) -> None:
    """Found by fuzzing: what is not there has the id of <unk>, and then that is -1."""
    data = model_path.read_bytes()
    for old, new in ((b"\n\x01\n", b"\n\x01\t"), (b"\n\x05<unk>", b"\n\x05<unx>")):
        assert data.count(old) == 1
        data = data.replace(old, new)
    begin = data.index(b"<unx>")
    kind = data.index(b"\x18\x02", begin)  # type: UNKNOWN
    data = data[:kind] + b"\x18\x01" + data[kind + 2 :]
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerFileError, match=r"has no piece '.n'"):
        SentencePieceTokenizer.from_file(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("piece", "spells"),
    [
        (b"\n\x01\n", r"must spell b'\\n', got b''"),
        (b"\n\x06<0x41>", "is unusable: .* not 256 byte pieces"),
    ],
)
def test_a_damaged_model_in_which_a_piece_is_of_another_kind(
    tmp_path: Path, model_path: Path, piece: bytes, spells: str
) -> None:
    """Found by fuzzing: texts came back without their newlines."""
    data = model_path.read_bytes()
    assert data.count(piece) == 1
    kind = data.index(b"\x18", data.index(piece))  # the tag of the field that says it
    data = data[: kind + 1] + b"\x03" + data[kind + 2 :]  # CONTROL
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerFileError, match=spells):
        SentencePieceTokenizer.from_file(tmp_path / "tokenizer.model")
