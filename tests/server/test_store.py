"""Stores of sessions, each against a dictionary; the blobs that they hold."""

import dataclasses
import json
import math
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import ServerConfig
from server.engine.results import Totals
from server.engine.snapshots import Answer, Snapshot, States, pack_tokens, unpack_tokens
from server.engine.solve import Solve, Solved
from server.store.base import Entry, SessionStore, StoreError, StoreOpenError
from server.store.blob import BlobError, read_blob, read_head, write_blob, write_head
from server.store.memory import MemoryStore
from server.store.opening import open_store
from server.store.sqlite import SQLiteStore


def make_snapshot(tokens: int = 5, **changes: object) -> Snapshot:
    rows, d_model = tokens + 1, 4
    values: dict[str, object] = {
        "session_id": "ab12",
        "model": "tiny",
        "fingerprint": "f00d",
        "owner": "ann",
        "ttl_s": 60.0,
        "solve": Solve(tol=1e-3, max_nfe=40),
        "create_time": 10.0,
        "last_used_time": 20.0,
        "revision": 7,
        "totals": Totals(tokens, -12.5),
        "tokens": pack_tokens(list(range(tokens))),
        "states": States(
            "float32", rows, d_model, os.urandom(4 * rows * d_model), Solved(9, 1e-4, "converged")
        ),
        "answers": (Answer("k", b"digest", b"answer"), Answer("l", b"other", None)),
    }
    return Snapshot(**{**values, **changes})  # type: ignore[arg-type]


def resealed(blob: bytes, change: dict[str, Any]) -> bytes:
    """A blob with another header, as a release wrote it to which that means something.

    What is a dictionary in ``change`` is changed in part.
    """
    end = 16 + int.from_bytes(blob[12:16], "little")
    header = json.loads(blob[16:end])
    for name, value in change.items():
        header[name] = header[name] | value if isinstance(value, dict) else value
    text = json.dumps(header).encode()
    begin = blob[:12] + len(text).to_bytes(4, "little") + text
    return begin + blob[end:-32] + blake2b(begin, digest_size=32).digest()


@pytest.mark.parametrize("form", ["sqlite:{}", "{}"])
@pytest.mark.parametrize("name", ["sessions.db", "a:b.db"])
def test_a_path_is_a_file_of_sqlite(form: str, name: str, tmp_path: Path) -> None:
    told = form.format(tmp_path / name)
    assert ServerConfig(session_store=told).session_store == told
    store = open_store(told, sync="normal", timeout_s=2.0)
    store.write([Entry("a", b"head", b"body")], [])
    store.close()
    assert store.outlives
    assert (tmp_path / name).read_bytes().startswith(b"SQLite format 3")


class TestBlob:
    """What is written is read, and nothing else."""

    @pytest.mark.parametrize("key", [None, b"a key of some length"])
    def test_there_and_back(self, key: bytes | None) -> None:
        snapshot = make_snapshot()
        opened = read_blob(write_blob(snapshot, key=key), key=key, strict=True)
        assert opened.snapshot == snapshot
        assert (opened.position, opened.last_token, opened.damage) == (5, 4, None)

    def test_an_infinite_residual_and_no_states(self) -> None:
        states = make_snapshot().states
        assert states is not None
        never = dataclasses.replace(states, solved=Solved(3, math.inf, "nonfinite"))
        for snapshot in (make_snapshot(states=never), make_snapshot(0, states=None, answers=())):
            assert read_blob(write_blob(snapshot)).snapshot == snapshot

    def test_a_head_has_all_but_the_content(self) -> None:
        snapshot = make_snapshot()
        opened = read_head(write_head(snapshot))
        bare = dataclasses.replace(snapshot, tokens=b"", states=None, answers=())
        assert opened.snapshot == bare
        assert (opened.position, opened.last_token) == (5, 4)

    def test_damaged_states_cost_the_states_alone(self) -> None:
        snapshot = make_snapshot()
        assert snapshot.states is not None
        blob = bytearray(write_blob(snapshot))
        blob[blob.index(snapshot.states.data)] ^= 1
        opened = read_blob(bytes(blob))
        assert opened.snapshot == dataclasses.replace(snapshot, states=None)
        assert opened.damage == "the states do not have the digest that the header tells"
        with pytest.raises(BlobError, match="states do not have the digest"):
            read_blob(bytes(blob), strict=True)

    @pytest.mark.parametrize(
        ("part", "told"),
        [
            (
                {"states": {"format": "float16"}},
                "states must be float32 or bfloat16, got 'float16'",
            ),
            ({"states": {"format": ["float32"]}}, "states must be told by format"),
            ({"states": {"rows": 5}}, "states of 5 rows of 4 cannot be 96 bytes"),
            ({"states": {"d_model": "4"}}, "states must be told by format"),
            ({"states": {"solved": [9, 1e-4, "given up"]}}, "states must be told by format"),
            ({"states": None}, "states must be told by format"),
            ({"answers": None}, "answers must be of type list, got NoneType"),
            ({"answers": [["k", "no hex", True]]}, "an answer must be told by key, request"),
            ({"answers": [["k", "00", True], ["l", "00", True]]}, "an answer must be told by key"),
        ],
    )
    def test_what_another_release_wrote_costs_no_session(
        self, part: dict[str, object], told: str
    ) -> None:
        """Its states and answers may be told otherwise; the seal is right."""
        snapshot, name = make_snapshot(), next(iter(part))
        blob = resealed(write_blob(snapshot), part)
        opened = read_blob(blob)
        lost: dict[str, object] = {name: None if name == "states" else ()}
        assert opened.snapshot == dataclasses.replace(snapshot, **lost)  # type: ignore[arg-type]
        assert opened.damage is not None
        assert told in opened.damage
        with pytest.raises(BlobError, match=r"must be|cannot be"):
            read_blob(blob, strict=True)

    def test_sections_of_another_release_cost_no_session(self) -> None:
        snapshot = make_snapshot()
        blob = write_blob(snapshot)
        listed = [["tokens", 20], ["keys", 96], ["answer", 6]]
        begin = len(blob) - 32 - 20 - 96 - 6
        for item in listed:
            item.append(blake2b(blob[begin : begin + item[1]], digest_size=16).hexdigest())
            begin += item[1]
        blob = resealed(blob, {"sections": listed})
        opened = read_blob(blob)
        assert opened.snapshot == dataclasses.replace(snapshot, states=None)
        assert opened.damage is not None
        assert "keys" in opened.damage
        with pytest.raises(BlobError, match="sections must be tokens, states and answers"):
            read_blob(blob, strict=True)

    @given(st.data())
    def test_any_changed_byte_is_noticed(self, data: st.DataObject) -> None:
        blob = bytearray(write_blob(make_snapshot()))
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(BlobError):
            read_blob(bytes(blob), strict=True)

    @given(st.binary(max_size=300), st.booleans())
    def test_any_other_bytes_are_refused(self, noise: bytes, looks_right: bool) -> None:
        with pytest.raises(BlobError):
            read_blob((write_blob(make_snapshot())[:16] if looks_right else b"") + noise)

    @pytest.mark.parametrize("length", [0, 10, 47, 100, -1])
    def test_a_part_is_refused(self, length: int) -> None:
        with pytest.raises(BlobError):
            read_blob(write_blob(make_snapshot())[:length])

    def test_signatures(self) -> None:
        key = b"a key of some length"
        plain, signed = write_blob(make_snapshot()), write_blob(make_snapshot(), key=key)
        with pytest.raises(BlobError, match="must be signed, and is not"):
            read_blob(plain, key=key)
        with pytest.raises(BlobError, match="there is no key"):
            read_blob(signed)
        with pytest.raises(BlobError, match="signature is wrong"):
            read_blob(signed, key=b"another key, as long")

    def test_exports_have_no_answers(self) -> None:
        assert read_blob(write_blob(make_snapshot(), answers=False)).snapshot.answers == ()

    @given(st.lists(st.integers(0, 2**32 - 1)))
    def test_tokens(self, tokens: list[int]) -> None:
        assert unpack_tokens(pack_tokens(tokens)) == tokens


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], SessionStore]]:
    """Opens a store; again, for what it has kept, where it outlives its process."""
    opened: list[SessionStore] = []
    if request.param == "redis":
        redis = request.getfixturevalue("redis_server")
        name = redis.url
    else:
        name = {"memory": "memory", "sqlite": f"sqlite:{tmp_path / 'sessions.db'}"}[request.param]

    def make() -> SessionStore:
        for store in opened:
            store.close()
        opened.append(open_store(name, sync="normal", timeout_s=2.0))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def test_a_store_keeps_what_it_is_given(make_store: Callable[[], SessionStore]) -> None:
    store = make_store()
    first, second = Entry("a", b"head a", b"body a" * 1000), Entry("b", b"head b", b"")
    store.write([first, second], [])
    store.write([Entry("c", b"h", b"x")], [])
    store.write([dataclasses.replace(second, body=b"new")], ["c", "never there"])
    if store.outlives:
        store = make_store()
    found = {head.session_id: (head.head, head.size) for head in store.heads()}
    assert found == {"a": (b"head a", 6000), "b": (b"head b", 3)}
    assert store.read("a") == first.body
    assert store.read("b") == b"new"
    assert store.read("c") is None


class TestSQLite:
    def test_a_file_belongs_to_one_process(self, tmp_path: Path) -> None:
        store = SQLiteStore(tmp_path / "sessions.db", timeout_s=0.1)
        store.write([Entry("a", b"h", b"b")], [])
        with pytest.raises(StoreOpenError, match=r"sessions\.db: database is locked"):
            SQLiteStore(tmp_path / "sessions.db", timeout_s=0.1)
        store.close()

    def test_it_is_its_owners_alone(self, tmp_path: Path) -> None:
        SQLiteStore(tmp_path / "sessions.db").close()
        assert (tmp_path / "sessions.db").stat().st_mode & 0o077 == 0

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreOpenError, match="No such file"):
            SQLiteStore(tmp_path / "no" / "sessions.db")

    @pytest.mark.parametrize("content", ["other", "newer", "noise"])
    def test_other_files_are_left_alone(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "sessions.db"
        if content == "noise":
            path.write_bytes(b"no database at all" * 100)
        else:
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE users (name TEXT)")
                if content == "newer":
                    db.execute("PRAGMA user_version = 2")
            db.close()
        before = path.read_bytes()
        with pytest.raises(StoreOpenError, match=r"sessions\.db"):
            SQLiteStore(path)
        assert path.read_bytes()[100:] == before[100:], "another program's file was changed"

    def test_it_goes_on_after_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "sessions.db"
        store = SQLiteStore(path)
        store.write([Entry("a", b"h", b"b")], [])
        hidden = tmp_path / "hidden"
        path.rename(hidden)
        path.mkdir()
        store._forget_connection()
        with pytest.raises(StoreError):
            store.write([Entry("a", b"h", b"c")], [])
        path.rmdir()
        hidden.rename(path)
        store.write([Entry("a", b"h", b"d")], [])
        assert store.read("a") == b"d"
        store.close()

    @pytest.mark.parametrize("gone", [("",), ("-wal",), ("", "-wal")])
    def test_a_file_that_is_deleted_is_made_anew(self, tmp_path: Path, gone: tuple[str]) -> None:
        path = tmp_path / "sessions.db"
        store = SQLiteStore(path)
        store.write([Entry("a", b"h", b"b")], [])
        for ending in gone:
            (tmp_path / f"sessions.db{ending}").unlink()
        store.write([Entry("b", b"h", b"c")], [])
        assert path.stat().st_mode & 0o077 == 0
        for name in list(os.listdir(tmp_path)):  # as a kill would leave it
            shutil.copy(tmp_path / name, tmp_path / f"copy {name}")
        copy = SQLiteStore(tmp_path / "copy sessions.db")
        assert [head.session_id for head in copy.heads()] == ["a", "b"]
        copy.close()
        path.unlink()
        store.close()
        store = SQLiteStore(path)
        assert [head.session_id for head in store.heads()] == ["a", "b"], "also at its end"
        store.close()

    def test_another_file_in_its_place_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "sessions.db"
        store = SQLiteStore(path)
        store.write([Entry("a", b"h", b"b")], [])
        hidden = path.rename(tmp_path / "hidden")
        path.write_bytes(b"something else")
        for _ in range(2):
            with pytest.raises(StoreError, match="another file is in its place; start the server"):
                store.write([Entry("a", b"h", b"c")], [])
        assert store.read("a") == b"b"
        assert path.read_bytes() == b"something else"
        hidden.replace(path)
        store.write([Entry("a", b"h", b"d")], [])
        store.close()
        path.unlink()

    def test_one_that_cannot_be_made_anew_loses_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        store = SQLiteStore(folder / "sessions.db")
        store.write([Entry("a", b"h", b"b")], [])
        shutil.rmtree(folder)
        for _ in range(2):
            with pytest.raises(StoreError, match="was deleted, and cannot be made anew"):
                store.write([Entry("b", b"h", b"c")], [])
        folder.mkdir()
        store.write([Entry("b", b"h", b"c")], [])
        assert [head.session_id for head in store.heads()] == ["a", "b"]
        store.close()


def test_memory_ends_with_the_process() -> None:
    assert not MemoryStore().outlives


def test_redis_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StoreOpenError, match=f"cannot open redis 127.0.0.1:{port}/0") as caught:
        open_store(f"redis://:secret@127.0.0.1:{port}/0", sync="normal", timeout_s=0.5)
    assert "secret" not in str(caught.value)


def test_redis_that_is_gone(redis_server) -> None:
    store = open_store(redis_server.url, sync="normal", timeout_s=0.5)
    store.write([Entry("a", b"h", b"b")], [])
    redis_server.stop()
    with pytest.raises(StoreError, match="redis 127"):
        store.write([Entry("a", b"h", b"c")], [])
    redis_server.start()
    store.write([Entry("a", b"h", b"c")], [])
    assert store.read("a") == b"c"
    store.close()


def test_redis_without_its_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StoreOpenError, match=r"pip install 'deqlm\[redis\]'"):
        open_store("redis://127.0.0.1:1/0", sync="normal", timeout_s=1.0)
