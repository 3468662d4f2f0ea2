"""Which tokenizer a checkpoint folder has, and whether it fits the config."""

import lzma
from pathlib import Path

import pytest

from deq_model.tokenizers.errors import TokenizerFileError
from deq_model.tokenizers.load import check_vocabulary, load_tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.word import WordTokenizer

SPM_MODEL = Path(__file__).parents[2] / "data" / "spm" / "tokenizer.model"


def test_vocabulary_file_means_words(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\n")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, WordTokenizer)
    assert loaded.n_token == 2


def test_model_file_means_sentencepiece() -> None:
    loaded = load_tokenizer(SPM_MODEL.parent)
    assert isinstance(loaded, SentencePieceTokenizer)
    assert loaded.n_token == 4096
    verse = "In the beginning God created the heaven and the earth.\n"
    assert len(loaded.encode(verse)) <= 15


def test_neither_and_both_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match=r"neither vocab\.txt nor tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\n")
    (tmp_path / "tokenizer.model").write_bytes(SPM_MODEL.read_bytes())
    with pytest.raises(TokenizerFileError, match=r"both vocab\.txt and tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a model", SPM_MODEL.read_bytes()[:20_000]])
def test_broken_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.model is unusable"):
        load_tokenizer(tmp_path)


def test_vocabulary_must_have_the_size_of_the_config() -> None:
    tokenizer = WordTokenizer(("<eos>", "the"))
    check_vocabulary(tokenizer, 2)
    with pytest.raises(TokenizerFileError, match="vocabulary has 2 entries, config n_token is 3"):
        check_vocabulary(tokenizer, 3)


def test_bundled_corpus_round_trips() -> None:
    path = SPM_MODEL.parents[1] / "corpus" / "valid.txt.xz"
    text = lzma.decompress(path.read_bytes()).decode("utf-8")
    tokenizer = load_tokenizer(SPM_MODEL.parent)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert len(text.encode()) / len(ids) > 2.5  # pieces that never match would give about 1
