"""The tokenizer of a run."""

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.errors import TokenizerError
from deq_model.tokenizers.word import WordTokenizer, build_word_vocabulary
from training.errors import DataError
from training.options.data import DataOptions
from training.prepare.text import Text
from training.vocabulary import (
    TokenizerPlan,
    build_tokenizer,
    open_tokenizer,
    plan_of,
    tokenizer_fingerprint,
    whole_words,
)

CATS = "the cat sat on the mat, and the dog sat too\n" * 40


def build(path: Path, **changes: object) -> Tokenizer:
    return build_tokenizer(TokenizerPlan(**changes), Text(path=path))  # type: ignore[arg-type]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("b a b c\nb c d\n" * 50)
    return path


def test_words_come_in_the_published_order_and_unk_is_there(text: Path) -> None:
    made = build(text, kind="word", vocab_size=0)
    assert [made.token_bytes(i) for i in range(1, made.n_token)] == [
        b"b", b"c", b"a", b"d", b"<unk>"
    ]  # fmt: skip


@given(text=st.text("ab\u00e9 \n\t\x0b\u2003", min_size=1, max_size=60), cut=st.integers(1, 9))
def test_words_are_whole_however_a_text_is_cut(text: str, cut: int) -> None:
    cuts = list(whole_words(text[i : i + cut] for i in range(0, len(text), cut)))
    assert "".join(cuts) == text
    assert all(piece[-1].isspace() for piece in cuts[:-1])
    assert [word for piece in cuts for word in piece.split()] == text.split()


def test_many_words_are_counted_as_the_reference_does(tmp_path: Path) -> None:
    lines = [f"w{i * i % 97} v{i % 13}\u2003<eos> w{i % 7}" for i in range(2000)]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    made = build(path, kind="word", vocab_size=0)
    words = [made.token_bytes(i).decode() for i in range(1, made.n_token)]
    assert ["<eos>", *words] == [*build_word_vocabulary(lines), "<unk>"]


def test_the_rarest_words_go_when_there_are_too_many(text: Path) -> None:
    made = build(text, kind="word", vocab_size=4)
    assert made.n_token == 4
    assert made.decode([1, 2, 3]) == "b c <unk>"
    assert made.encode("b a").unknown == 1


def test_a_text_with_unk_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a <unk> a\n")
    made = build(path, kind="word")
    assert made.decode([1, 2]) == "a <unk>"
    assert made.n_token == 3


def test_pieces_from_an_xz_text_keep_every_character(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.xz"
    path.write_bytes(lzma.compress(CATS.encode()))
    made = build(path, vocab_size=274)
    assert made.n_token == 274
    assert made.decode(made.encode("a  cat\nÄ").ids) == "a  cat\nÄ"


def test_the_largest_and_the_least_sentencepiece_vocabulary_are_named_and_do(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.txt"
    path.write_text(CATS)
    with pytest.raises(DataError, match=r"vocab_size must be at most 275 .*got 4096 .*data.vocab"):
        build(path, vocab_size=4096)
    assert build(path, vocab_size=275).n_token == 275
    with pytest.raises(DataError, match=r"vocab_size must be at least 272 .*got 260"):
        build(path, vocab_size=260)
    assert build(path, vocab_size=272).n_token == 272


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "word", "vocab_size": 1}, "0 for all words, or at least 2 .*, got 1"),
        ({"vocab_size": 258}, "at least 259 for sentencepiece .*, got 258"),
    ],
)
def test_vocabularies_that_no_text_allows(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenizerPlan(**options)  # type: ignore[arg-type]


def test_an_existing_tokenizer_by_file_or_folder(tmp_path: Path, text: Path) -> None:
    WordTokenizer(["<eos>", "b"]).save(tmp_path)
    for path in (tmp_path / "vocab.txt", tmp_path):
        plan = plan_of(DataOptions(train=text, valid=text, tokenizer=path, vocab_size=1), seed=0)
        assert build_tokenizer(plan, Text(path=text)).n_token == 2


def test_a_fingerprint_tells_tokenizers_apart() -> None:
    one, same, other = (WordTokenizer(["<eos>", *words]) for words in ("ab", "ab", "ba"))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(same)
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
    assert len(tokenizer_fingerprint(one)) == 16


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"none")
    with pytest.raises(TokenizerError, match="unusable"):
        open_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"neither vocab.txt nor tokenizer.model"):
        open_tokenizer(tmp_path / "..")


@pytest.mark.parametrize("content", ["\n\n\n", "word " * 300_000])
def test_a_text_without_lines_to_train_on(tmp_path: Path, content: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=r"text.txt must have lines to train sentencepiece on"):
        build(path, vocab_size=300)
