"""Prepared folders: made, found again, refused, opened."""

import fcntl
import json
import logging
import lzma
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from deq_model.tokenizers.errors import TokenizerFileError
from deq_model.tokenizers.word import WordTokenizer
from training import lock as locking
from training.data import open_prepared
from training.errors import DataError
from training.prepare import encode as encoding
from training.prepare import folder as preparing
from training.prepare import text as reading
from training.prepare.folder import Outcome, prepare_texts
from training.prepare.manifest import Split
from training.vocabulary import TokenizerPlan

WORDS = TokenizerPlan(kind="word", vocab_size=0)
PIECES = TokenizerPlan(vocab_size=300)
TRAIN = "".join(f"the w{i * i % 41}\u2003cat,  sät on  {i} mats \n\n" for i in range(300))
VALID = "the dog sat\nw3 w4 \n"
LIMIT_PASSED = 1 << 16


@pytest.fixture
def texts(tmp_path: Path) -> dict[Split, Path]:
    (tmp_path / "train.txt").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "valid.txt.xz").write_bytes(lzma.compress(VALID.encode()))
    return {"train": tmp_path / "train.txt", "valid": tmp_path / "valid.txt.xz"}


@pytest.fixture
def made(texts: dict[Split, Path], tmp_path: Path) -> Path:
    assert prepare_texts(texts, tmp_path / "out", WORDS).made
    return tmp_path / "out"


def again(texts: dict[Split, Path], out: Path, plan: TokenizerPlan = WORDS) -> Outcome:
    return prepare_texts(texts, out, plan)


@pytest.mark.parametrize("plan", [WORDS, PIECES])
@pytest.mark.parametrize("size", [7, 1 << 22])
def test_tokens_are_those_of_the_whole_text_however_it_is_read(
    texts: dict[Split, Path],
    tmp_path: Path,
    plan: TokenizerPlan,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "PIECE", size)
    monkeypatch.setattr(encoding, "_FED", 5)
    outcome = prepare_texts(texts, tmp_path / "out", plan)
    data = open_prepared(tmp_path / "out")
    for ids, text, split in ((data.train, TRAIN, "train"), (data.valid, VALID, "valid")):
        whole = data.tokenizer.encode(text)
        assert ids.tolist() == list(whole.ids)
        info = outcome.manifest.splits[split]  # type: ignore[index]
        assert (info.tokens, info.unknown) == (len(whole.ids), whole.unknown)
    assert data.train.dtype == np.uint16
    assert isinstance(data.train, np.memmap)
    assert data.test is None
    assert data.manifest == outcome.manifest


def test_large_vocabularies_take_wider_ids(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(LIMIT_PASSED)]
    (tmp_path / "train.txt").write_text(" ".join(words) + "\n")
    paths: dict[Split, Path] = {"train": tmp_path / "train.txt", "valid": tmp_path / "train.txt"}
    prepare_texts(paths, tmp_path / "out", WORDS)
    data = open_prepared(tmp_path / "out")
    assert data.train.dtype == np.int32
    assert np.array_equal(data.train, [*range(1, LIMIT_PASSED + 1), 0])


def test_a_second_time_reads_no_text(
    texts: dict[Split, Path], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_opened", None)
    outcome = again(texts, made)
    assert not outcome.made
    assert outcome.manifest == open_prepared(made).manifest


def test_a_copy_with_another_time_is_the_same_text(texts: dict[Split, Path], made: Path) -> None:
    os.utime(texts["train"], (1, 1))
    assert not again(texts, made).made


def test_texts_that_are_gone_are_not_needed_any_more(
    texts: dict[Split, Path], made: Path, tmp_path: Path
) -> None:
    texts["train"].unlink()
    assert not again(texts, made).made
    with pytest.raises(DataError, match=r"cannot read train text .*other.txt: no such file"):
        again(texts | {"train": tmp_path / "other.txt"}, made)


@pytest.mark.parametrize("same_length", [True, False])
def test_a_changed_text_is_named_and_prepared_again_when_told(
    texts: dict[Split, Path], made: Path, same_length: bool
) -> None:
    changed = TRAIN.replace("cat", "cow" if same_length else "horse")
    texts["train"].write_text(changed, encoding="utf-8")
    os.utime(texts["train"], (1, 1))
    with pytest.raises(DataError, match=r"train text .*train.txt has changed .*--force true"):
        again(texts, made)
    assert open_prepared(made).tokenizer.encode("cow").unknown == 1
    assert prepare_texts(texts, made, WORDS, remake="always").made
    assert open_prepared(made).tokenizer.encode("cat").unknown == 1


def test_other_options_are_refused(texts: dict[Split, Path], made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was prepared with --vocab-size 0, got 9"):
        again(texts, made, TokenizerPlan(kind="word", vocab_size=9))
    with pytest.raises(DataError, match="with the splits train, valid, got train, valid, test"):
        again(texts | {"test": texts["valid"]}, made)
    with pytest.raises(DataError, match="was prepared with --tokenizer None, got "):
        WordTokenizer(["<eos>", "<unk>"]).save(tmp_path)
        again(texts, made, TokenizerPlan(tokenizer=tmp_path / "vocab.txt"))
    assert prepare_texts(texts, made, PIECES, remake="changed").made
    assert not (made / "vocab.txt").exists()


def test_a_lost_output_is_made_again_when_told(texts: dict[Split, Path], made: Path) -> None:
    (made / "valid.npy").unlink()
    with pytest.raises(DataError, match=r"tokens .*valid.npy are missing"):
        again(texts, made)
    assert prepare_texts(texts, made, WORDS, remake="changed").made
    (made / "vocab.txt").unlink()
    with pytest.raises(DataError, match="has lost its tokenizer"):
        again(texts, made)


def test_a_share_of_one_text_is_held_out(texts: dict[Split, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    train: dict[Split, Path] = {"train": texts["train"]}
    outcome = prepare_texts(train, out, WORDS, valid_share=0.25)
    data = open_prepared(out)
    lines = TRAIN.splitlines(keepends=True)
    n = sum(1 for i in data.train if i == 0)
    assert data.train.tolist() == list(data.tokenizer.encode("".join(lines[:n])).ids)
    assert data.valid.tolist() == list(data.tokenizer.encode("".join(lines[n:])).ids)
    assert outcome.manifest.splits["valid"].unknown > 0
    assert len(data.valid) / (len(data.train) + len(data.valid)) == pytest.approx(0.25, abs=0.01)
    assert not prepare_texts(train, out, WORDS, valid_share=0.25).made
    with pytest.raises(DataError, match=r"prepared with --valid-share 0.25, got 0.5"):
        prepare_texts(train, out, WORDS, valid_share=0.5)


def test_a_text_of_one_line_has_no_share(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b c\n")
    with pytest.raises(DataError, match=r"cannot be cut at --valid-share 0.5"):
        prepare_texts({"train": tmp_path / "train.txt"}, tmp_path / "o", WORDS, valid_share=0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b\nc \xe4\n", r"valid.txt is not UTF-8: byte 0xe4 at offset 6 \(line 2\)"),
        (b"", r"valid.txt is empty"),
    ],
)
def test_a_bad_split_is_told_before_anything_is_written(
    texts: dict[Split, Path], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "valid.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare_texts(texts | {"valid": path}, tmp_path / "out", WORDS)
    assert not (tmp_path / "out").exists()


def test_where_utf8_breaks_in_a_later_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 3)
    path = tmp_path / "train.txt"
    path.write_bytes("ää\nä\nä".encode() + b"\xc3(\n")
    with pytest.raises(DataError, match=r"byte 0xc3 at offset 10 \(line 3\): invalid continuation"):
        reading.scan(path)


def test_a_missing_text_and_a_folder_in_its_place(texts: dict[Split, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read valid text .*none.txt: No such file"):
        again(texts | {"valid": tmp_path / "none.txt"}, tmp_path / "out")
    with pytest.raises(DataError, match=r"valid text .* must be a file, got a folder"):
        again(texts | {"valid": tmp_path}, tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"valid text .*pipe must be a file, got a pipe or a dev"):
        again(texts | {"valid": tmp_path / "pipe"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "train.npy"])
def test_files_of_somebody_else_are_left_alone(
    texts: dict[Split, Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(DataError, match=rf"{name} was not made by deqlm prepare; name another"):
        prepare_texts(texts, out, WORDS, remake="changed")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]
    assert prepare_texts(texts, out, WORDS, remake="always").made


def test_a_text_is_not_overwritten(texts: dict[Split, Path], made: Path) -> None:
    (made / "vocab.txt").write_text(TRAIN)
    with pytest.raises(DataError, match=r"train text .*vocab.txt would be overwritten"):
        prepare_texts(texts | {"train": made / "vocab.txt"}, made, WORDS, remake="always")
    assert (made / "vocab.txt").read_text() == TRAIN


def test_an_output_that_cannot_be_written(texts: dict[Split, Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"cannot prepare .*taken: .*taken: File exists"):
        again(texts, tmp_path / "taken")
    with pytest.raises(DataError, match=r"cannot prepare .*: File name too long"):
        again(texts, tmp_path / ("x" * 300))


def test_a_vocabulary_that_does_not_fit_leaves_what_is_there(
    texts: dict[Split, Path], made: Path
) -> None:
    with pytest.raises(DataError, match="vocab_size must be at most"):
        prepare_texts(texts, made, TokenizerPlan(vocab_size=9999), remake="always")
    assert not again(texts, made).made


def test_an_unknown_word_where_there_is_no_unk(texts: dict[Split, Path], tmp_path: Path) -> None:
    WordTokenizer(["<eos>", "the"]).save(tmp_path)
    plan = TokenizerPlan(tokenizer=tmp_path)
    with pytest.raises(DataError, match=r"train.txt has the word 'w0', which is not in"):
        again(texts, tmp_path / "out", plan)


def test_an_existing_tokenizer_is_taken_as_it_is(texts: dict[Split, Path], tmp_path: Path) -> None:
    WordTokenizer(["<eos>", "the", "<unk>"]).save(tmp_path)
    outcome = again(texts, tmp_path / "out", TokenizerPlan(tokenizer=tmp_path / "vocab.txt"))
    assert outcome.manifest.n_token == 3
    assert open_prepared(tmp_path / "out").valid.tolist() == [1, 2, 2, 0, 2, 2, 0]
    assert not again(texts, tmp_path / "out", TokenizerPlan(tokenizer=tmp_path / "vocab.txt")).made


def test_a_text_that_changes_meanwhile(
    texts: dict[Split, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = preparing.build_tokenizer

    def meddle(*arguments: object) -> object:
        os.utime(texts["valid"], (1, 1))
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "build_tokenizer", meddle)
    with pytest.raises(DataError, match=r"valid.txt.xz changed while it was being prepared"):
        again(texts, tmp_path / "out")
    with pytest.raises(DataError, match="is not a prepared folder"):
        open_prepared(tmp_path / "out")


def test_a_folder_is_written_by_one_at_a_time(texts: dict[Split, Path], tmp_path: Path) -> None:
    out, waiting, outcomes = tmp_path / "out", threading.Event(), []
    out.mkdir()
    handler = logging.Handler()
    handler.emit = lambda record: waiting.set()  # type: ignore[method-assign]
    logger = logging.getLogger(locking.__name__)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: outcomes.append(again(texts, out)))
    try:
        thread.start()
        assert waiting.wait(30)
        assert list(out.iterdir()) == []
    finally:
        os.close(held)
        thread.join(30)
        logger.setLevel(level)
        logger.removeHandler(handler)
    assert outcomes[0].made


def test_what_a_killed_process_left_is_no_prepared_folder_and_goes(
    texts: dict[Split, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise SystemExit

    made = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(preparing.Manifest, "save", killed)
        again(texts, made)
    (made / ".train.npy.1234.tmp").write_text("half")
    with pytest.raises(DataError, match="is not a prepared folder"):
        open_prepared(made)
    assert again(texts, made).made
    assert sorted(path.name for path in made.iterdir()) == [
        "prepared.json", "train.npy", "valid.npy", "vocab.txt"
    ]  # fmt: skip


def test_another_format(made: Path) -> None:
    values = json.loads((made / "prepared.json").read_text())
    (made / "prepared.json").write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(DataError, match=r"prepared.json must have format 1, got 2"):
        open_prepared(made)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 100_000, '{"format": 1}', '{"format": 1, "splits": 3}', '{"format": []'],
)
def test_a_damaged_manifest(made: Path, content: str) -> None:
    (made / "prepared.json").write_text(content)
    with pytest.raises(DataError, match=r"prepared.json is damaged"):
        open_prepared(made)


@pytest.mark.parametrize(
    ("key", "value"), [("n_token", "9"), ("settings", []), ("splits", {"train": {"tokens": "9"}})]
)
def test_a_manifest_with_values_of_other_types(made: Path, key: str, value: object) -> None:
    values = json.loads((made / "prepared.json").read_text())
    (made / "prepared.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(DataError, match=r"prepared.json is damaged"):
        open_prepared(made)


def test_an_array_that_is_an_archive(made: Path) -> None:
    with (made / "train.npy").open("wb") as file:
        np.savez(file, ids=np.zeros(3))
    with pytest.raises(DataError, match=r"train.npy are missing or damaged"):
        open_prepared(made)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (5,), ",  # tokenize.TokenError
        b"{'descr': '<u2', b'fortran_order': False, 'shape': (5,)}\n",  # TypeError
    ],
)
@pytest.mark.filterwarnings("ignore:Reading .* required additional header parsing")
def test_an_array_with_a_header_that_cannot_be_read(made: Path, header: bytes) -> None:
    size = len(header).to_bytes(2, "little")
    (made / "train.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + header + bytes(10))
    with pytest.raises(DataError, match=r"train.npy are missing or damaged"):
        open_prepared(made)


def test_a_truncated_array(made: Path) -> None:
    with (made / "train.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"train.npy are missing or damaged"):
        open_prepared(made)


def test_an_array_of_another_length(made: Path) -> None:
    np.save(made / "train.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(DataError, match=r"must be uint16 of shape \(\d+,\), got uint16 .*\(3,\)"):
        open_prepared(made)


@pytest.mark.parametrize("bad", [10_000, -1])
def test_ids_beyond_the_vocabulary(made: Path, texts: dict[Split, Path], bad: int) -> None:
    ids = np.load(made / "train.npy")
    ids[7] = bad % (1 << 16)
    np.save(made / "train.npy", ids)
    with pytest.raises(DataError, match=r"must be in \[0, \d+\), got \d+ at position 7"):
        open_prepared(made)


def test_a_tokenizer_that_was_changed_or_lost(made: Path) -> None:
    words = (made / "vocab.txt").read_text(encoding="utf-8").split()
    WordTokenizer([words[0], *reversed(words[1:])]).save(made)
    with pytest.raises(DataError, match="must be the one that its tokens were made with"):
        open_prepared(made)
    (made / "vocab.txt").unlink()
    with pytest.raises(TokenizerFileError, match=r"neither vocab.txt nor tokenizer.model"):
        open_prepared(made)
