"""Texts as tokens, and tokens as streams and blocks."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.tokenizers.word import WordTokenizer
from training.data import (
    BlockLengths,
    Streams,
    open_data,
    open_prepared,
    read_text,
    read_tokens,
    token_sizes,
)
from training.errors import DataError, OptionsError
from training.options.data import DataOptions
from training.prepare.folder import prepare_texts
from training.prepare.text import Text
from training.vocabulary import TokenizerPlan, build_tokenizer

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


@given(batch_size=st.integers(1, 8), data=st.data())
def test_shares_side_by_side_are_the_whole(batch_size: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, batch_size - 1)) if batch_size > 1 else batch_size
    ids = torch.arange(batch_size * 7 + 3)
    whole = Streams(ids, batch_size=batch_size).block(2, tgt_len=4)
    shares = [slice(0, cut), slice(cut, batch_size)][: 2 if cut < batch_size else 1]
    parts = [Streams(ids, batch_size=batch_size, share=share) for share in shares]
    blocks = [part.block(2, tgt_len=4) for part in parts]
    assert torch.equal(torch.cat([block.tokens for block in blocks]), whole.tokens)
    assert torch.equal(torch.cat([block.targets for block in blocks]), whole.targets)
    assert sum(part.batch_size for part in parts) == batch_size


@pytest.mark.parametrize("share", [slice(2, 2), slice(4, 5), slice(0, 4, 2)])
def test_a_share_without_streams_in_a_row(share: slice) -> None:
    with pytest.raises(DataError, match="share must name streams in a row of 4"):
        Streams(torch.arange(40), batch_size=4, share=share)


def test_streams_read_no_more_of_a_map_than_a_block(tmp_path: Path) -> None:
    """The map is of a sparse file larger than memory: reading it all would not end well."""
    path, n = tmp_path / "ids.npy", 1 << 41
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<u2", "fortran_order": False, "shape": (n,)}
        )
        begin = file.tell()
        file.truncate(begin + 2 * n)
        file.seek(begin + 2 * (n // 2 + 5))
        file.write(np.array([7, 8, 9], dtype="<u2").tobytes())
    block = Streams(np.load(path, mmap_mode="r"), batch_size=2).block(5, tgt_len=2)
    assert block.tokens.tolist() == [[0, 0], [7, 8]]
    assert block.targets.tolist() == [[0, 0], [8, 9]]
    assert block.tokens.dtype == torch.int64


def test_a_last_line_without_newline_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\nb")
    assert read_text(path) == "a b\nb\n"
    assert read_tokens(path, WORDS).ids.tolist() == [1, 2, 0, 2, 0]


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_packed_file_reads_as_the_plain_one(tmp_path: Path, suffix: str, pack: object) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(pack("ä b\r\n".encode()))  # type: ignore[operator]
    assert read_text(path) == "ä b\r\n"


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a c d\n")
    tokens = read_tokens(tmp_path / "text.txt", WORDS)
    assert tokens.unknown == 2
    assert tokens.ids.tolist() == [1, 3, 3, 0]
    assert tokens.ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"", "is empty"),
        ("text.txt", b"a\n\n \xff b", r"byte 0xff at offset 4 \(line 3\): invalid start byte"),
        ("text.txt", b"a\n\xc3", r"byte 0xc3 at offset 2 \(line 2\): unexpected end of data"),
        ("text.xz", b"not compressed", "cannot read text"),
        ("text.gz", b"not compressed", "cannot read text"),
        ("text.gz", gzip.compress(b"abc")[:-9], "cannot read text"),
        ("text.xz", lzma.compress(b"abc")[:-9], "cannot read text"),
    ],
)
def test_unusable_texts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / name)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read text .*missing: No such file"):
        read_text(tmp_path / "missing")


@pytest.fixture
def texts(tmp_path: Path) -> DataOptions:
    (tmp_path / "train.txt").write_text("a b a\n" * 20)
    (tmp_path / "valid.txt").write_text("a c\n" * 20)
    return DataOptions(
        train=tmp_path / "train.txt",
        valid=tmp_path / "valid.txt",
        tokenizer_kind="word",
        vocab_size=0,
    )


def test_the_texts_of_a_run_are_prepared_once(texts: DataOptions, tmp_path: Path) -> None:
    data = open_data(texts, out=tmp_path / "run", seed=0)
    assert data.valid[:3].tolist() == [1, 3, 0]
    assert data.manifest.splits["valid"].unknown == 20
    path = tmp_path / "run" / "data" / "train.npy"
    before = path.stat().st_mtime_ns
    assert open_data(texts, out=tmp_path / "run", seed=0).manifest == data.manifest
    assert path.stat().st_mtime_ns == before
    assert open_data(DataOptions(prepared=path.parent), out=tmp_path / "x", seed=0).test is None
    assert not (tmp_path / "x").exists()


def test_a_run_refuses_changed_texts_or_takes_them_as_told(
    texts: DataOptions, tmp_path: Path
) -> None:
    open_data(texts, out=tmp_path / "run", seed=0)
    (tmp_path / "valid.txt").write_text("b b\n" * 20)
    with pytest.raises(DataError, match=r"valid text .*valid\.txt has changed"):
        open_data(texts, out=tmp_path / "run", seed=0)
    again = open_data(texts, out=tmp_path / "run", seed=0, remake="changed")
    assert again.valid[:3].tolist() == [2, 2, 0]


def test_a_split_of_a_prepared_folder_reads_as_its_text(texts: DataOptions, tmp_path: Path) -> None:
    assert texts.train is not None and texts.valid is not None
    folder = tmp_path / "made"
    prepare_texts({"train": texts.train, "valid": texts.valid}, folder, TokenizerPlan(kind="word"))
    tokenizer = open_prepared(folder).tokenizer
    plain = read_tokens(texts.valid, tokenizer)
    for path in (folder, folder / "valid.npy"):
        split = read_tokens(path, tokenizer, split="valid")
        assert (split.ids.tolist(), split.unknown) == (plain.ids.tolist(), plain.unknown)
    streams = [Streams(ids, batch_size=3) for ids in (plain.ids, split.ids)]
    assert torch.equal(streams[0].block(1, tgt_len=5).tokens, streams[1].block(1, tgt_len=5).tokens)
    with pytest.raises(DataError, match="split must be one of train, valid, got test"):
        read_tokens(folder, tokenizer)
    with pytest.raises(DataError, match=r"must be train.npy, valid.npy or test.npy"):
        read_tokens(folder / "other.npy", tokenizer)
    with pytest.raises(DataError, match="was prepared with the tokenizer"):
        read_tokens(folder / "valid.npy", WordTokenizer(["<eos>", "b", "a", "<unk>"]))


@pytest.mark.parametrize("plan", [TokenizerPlan(kind="word"), TokenizerPlan(vocab_size=264)])
def test_sizes_of_tokens_add_up_to_the_text(tmp_path: Path, plan: TokenizerPlan) -> None:
    path, text = tmp_path / "train.txt", "a bä a\n\nbä a\n" * 9
    path.write_text(text, encoding="utf-8")
    tokenizer = build_tokenizer(plan, Text(path=path))
    encoding = tokenizer.encode(text)
    ends = token_sizes(torch.tensor(encoding.ids), tokenizer).cumsum(0)
    assert ends.tolist() == list(encoding.end)


def test_constant_block_lengths() -> None:
    lengths = BlockLengths(tgt_len=8, std=0.0, minimum=9, seed=1)
    assert {lengths.at(step) for step in range(50)} == {8}
    assert lengths.longest == 8


def test_block_lengths_vary_about_the_mean() -> None:
    lengths = BlockLengths(tgt_len=150, std=5.0, minimum=20, seed=3)
    drawn = [lengths.at(step) for step in range(4000)]
    long = [length for length in drawn if length > 112]
    short = [length for length in drawn if length <= 112]
    assert np.mean(long) == pytest.approx(150, abs=0.5)
    assert np.std(long) == pytest.approx(5, abs=0.5)
    assert np.mean(short) == pytest.approx(75, abs=2)
    assert len(short) / len(drawn) == pytest.approx(0.05, abs=0.015)
    assert max(drawn) <= lengths.longest == 165


@given(
    tgt_len=st.integers(1, 300), std=st.floats(0.01, 500), step=st.integers(0), seed=st.integers(0)
)
def test_a_block_length_is_bounded_and_depends_on_seed_and_step_alone(
    tgt_len: int, std: float, step: int, seed: int
) -> None:
    lengths = BlockLengths(tgt_len=tgt_len, std=std, minimum=min(5, tgt_len), seed=seed)
    again = BlockLengths(tgt_len=tgt_len, std=std, minimum=min(5, tgt_len), seed=seed)
    assert lengths.minimum <= lengths.at(step) <= lengths.longest
    assert lengths.at(step) == again.at(step)


def test_block_lengths_are_those_of_ever() -> None:
    """A run goes on with another version to the same blocks."""
    lengths = BlockLengths(tgt_len=150, std=10.0, minimum=20, seed=7)
    assert [lengths.at(step) for step in range(8)] == EXPECTED_LENGTHS
    assert [BlockLengths(tgt_len=150, std=10.0, seed=8).at(step) for step in range(8)] != (
        EXPECTED_LENGTHS
    )


EXPECTED_LENGTHS = [149, 162, 156, 149, 93, 145, 134, 66]


def test_a_least_length_above_the_mean() -> None:
    with pytest.raises(OptionsError, match=r"tgt_len_min must be at most model.tgt_len = 8, got 9"):
        BlockLengths(tgt_len=8, std=1.0, minimum=9)
