"""Texts as tokens, and tokens as streams and blocks."""

import lzma
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.word import WordTokenizer
from training import data
from training.data import Streams, read_text, read_tokens
from training.errors import DataError

WORDS = WordTokenizer(["<eos>", "a", "b", "<unk>"])


@given(n=st.integers(2, 200), batch_size=st.integers(1, 9), tgt_len=st.integers(1, 20))
def test_blocks_hold_every_pair_of_a_stream_once(n: int, batch_size: int, tgt_len: int) -> None:
    length = n // batch_size
    if length < 2:
        with pytest.raises(DataError, match=f"at least {2 * batch_size} tokens"):
            Streams(torch.arange(n), batch_size=batch_size)
        return
    streams = Streams(torch.arange(n), batch_size=batch_size)
    blocks = list(streams.blocks(tgt_len=tgt_len))
    tokens = torch.cat([block.tokens for block in blocks], dim=1)
    targets = torch.cat([block.targets for block in blocks], dim=1)
    columns = torch.arange(batch_size * length).view(batch_size, length)
    assert torch.equal(tokens, columns[:, :-1])
    assert torch.equal(targets, columns[:, 1:])
    assert all(block.tokens.shape[1] == tgt_len for block in blocks[:-1])
    assert [block.begin for block in blocks] == list(range(0, length - 1, tgt_len))


def test_a_last_line_without_newline_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\nb")
    assert read_text(path) == "a b\nb\n"
    assert read_tokens(path, WORDS).ids.tolist() == [1, 2, 0, 2, 0]


def test_an_xz_file_reads_as_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "text.txt.xz").write_bytes(lzma.compress("ä b\r\n".encode()))
    assert read_text(tmp_path / "text.txt.xz") == "ä b\r\n"


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a c d\n")
    tokens = read_tokens(tmp_path / "text.txt", WORDS)
    assert tokens.unknown == 2
    assert tokens.ids.tolist() == [1, 3, 3, 0]


def test_tokens_are_kept_by_text_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text("a b\n")
    first = read_tokens(path, WORDS, cache=cache)
    encoded: list[str] = []
    plain = data._encode
    monkeypatch.setattr(data, "_encode", lambda text, t: encoded.append(text) or plain(text, t))
    again = read_tokens(path, WORDS, cache=cache)
    assert encoded == []
    assert torch.equal(again.ids, first.ids)
    assert again.ids.dtype == torch.int64
    swapped = read_tokens(path, WordTokenizer(["<eos>", "b", "a"]), cache=cache)
    assert swapped.ids.tolist() == [2, 1, 0]
    path.write_text("b b\n")
    assert read_tokens(path, WORDS, cache=cache).ids.tolist() == [2, 2, 0]
    assert encoded == ["a b\n", "b b\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"", "is empty"),
        ("text.txt", b"a \xff b", "cannot read text"),
        ("text.xz", b"not compressed", "cannot read text"),
    ],
)
def test_unusable_texts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / name)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read text .*missing"):
        read_text(tmp_path / "missing")
