"""The tokenizer of a run."""

import lzma
from pathlib import Path

import pytest

from deq_model.tokenizers.errors import TokenizerError
from deq_model.tokenizers.word import WordTokenizer
from training.options.data import DataOptions
from training.vocabulary import make_tokenizer, open_tokenizer


def options(train: Path, **changes: object) -> DataOptions:
    return DataOptions(train=train, valid=train, **changes)  # type: ignore[arg-type]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("b a b c\nb c d\n" * 50)
    return path


def test_words_come_in_the_published_order_and_unk_is_there(text: Path) -> None:
    made = make_tokenizer(options(text, tokenizer_kind="word", vocab_size=0), seed=0)
    assert [made.token_bytes(i) for i in range(1, made.n_token)] == [
        b"b", b"c", b"a", b"d", b"<unk>"
    ]  # fmt: skip


def test_the_rarest_words_go_when_there_are_too_many(text: Path) -> None:
    made = make_tokenizer(options(text, tokenizer_kind="word", vocab_size=4), seed=0)
    assert made.n_token == 4
    assert made.decode([1, 2, 3]) == "b c <unk>"
    assert made.encode("b a").unknown == 1


def test_a_text_with_unk_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a <unk> a\n")
    made = make_tokenizer(options(path, tokenizer_kind="word"), seed=0)
    assert made.decode([1, 2]) == "a <unk>"
    assert made.n_token == 3


def test_pieces_from_an_xz_text_keep_every_character(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.xz"
    path.write_bytes(lzma.compress(("the cat sat on the mat, and the dog sat too\n" * 40).encode()))
    made = make_tokenizer(options(path, vocab_size=274), seed=0)
    assert made.n_token == 274
    assert made.decode(made.encode("a  cat\nÄ").ids) == "a  cat\nÄ"


def test_an_existing_tokenizer_by_file_or_folder(tmp_path: Path, text: Path) -> None:
    WordTokenizer(["<eos>", "b"]).save(tmp_path)
    for path in (tmp_path / "vocab.txt", tmp_path):
        assert make_tokenizer(options(text, tokenizer=path), seed=0).n_token == 2


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"none")
    with pytest.raises(TokenizerError, match="unusable"):
        open_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"neither vocab.txt nor tokenizer.model"):
        open_tokenizer(tmp_path / "..")
