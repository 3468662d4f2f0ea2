"""Sessions given out as bytes, and taken in again."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from client.commands.session import main
from client.sync import Client
from deqlm.v1 import session_pb2
from server.app import Server
from server.config import ServerConfig
from server.start import StartError
from server.store.blob import read_blob, write_blob
from tests.server.calls import TIGHT, TIMEOUT_S, Stubs, fails

TEXT = "It was a dark and stormy night."
NEAR = 2e-3


def give_out(stubs: Stubs, session: str) -> bytes:
    request = session_pb2.ExportSessionRequest(session_id=session)
    answer = stubs.sessions.ExportSession(request, timeout=TIMEOUT_S, metadata=stubs.metadata)
    assert answer.session.session_id == session
    return answer.blob


def take_in(stubs: Stubs, blob: bytes, **fields):
    request = session_pb2.ImportSessionRequest(blob=blob, **fields)
    return stubs.sessions.ImportSession(request, timeout=TIMEOUT_S, metadata=stubs.metadata)


def logprobs(answer) -> list[float]:
    return [token.logprob for token in answer.tokens]


def test_an_imported_session_goes_on_like_its_source(stubs):
    session = stubs.create(solver=TIGHT, ttl_s=100.0)
    stubs.score(TEXT, session_id=session)
    taken = take_in(Stubs(stubs.channel, owner="bob"), give_out(stubs, session)).session
    assert taken.session_id != session
    assert taken.owner == "bob"
    source = stubs.get(session)
    for name in ("position", "totals", "ttl_s", "solver", "model"):
        assert getattr(taken, name) == getattr(source, name)
    one = stubs.score(TEXT, session_id=session)
    other = Stubs(stubs.channel, owner="bob").score(TEXT, session_id=taken.session_id)
    assert logprobs(one) == pytest.approx(logprobs(other), abs=NEAR)
    assert one.solver.solved_tokens == other.solver.solved_tokens


def test_an_empty_session(stubs):
    taken = take_in(stubs, give_out(stubs, stubs.create()), ttl_s=7.0).session
    assert (taken.position, taken.ttl_s) == (0, 7.0)
    assert stubs.score(TEXT, session_id=taken.session_id).position > 0


def test_bytes_of_another_checkpoint_are_solved_again(stubs):
    session = stubs.create(solver=TIGHT)
    stubs.score(TEXT, session_id=session)
    foreign = replace(read_blob(give_out(stubs, session)).snapshot, fingerprint="another")
    taken = take_in(stubs, write_blob(foreign)).session.session_id
    one = stubs.score(TEXT, session_id=session)
    other = stubs.score(TEXT, session_id=taken)
    assert logprobs(one) == pytest.approx(logprobs(other), abs=NEAR)
    assert other.solver.solved_tokens > one.solver.solved_tokens


class TestMoreTokensThanACallMayHave:
    """One that has to be solved again may have as many as could be scored."""

    @pytest.fixture
    def server(self, make_server):
        return make_server(max_score_tokens=20)

    @pytest.fixture
    def blob(self, server):
        stubs = Stubs(server.channel)
        session = stubs.create()
        for _ in range(2):
            stubs.score([5] * 12, session_id=session)
        return give_out(stubs, session)

    def test_with_its_states(self, server, blob):
        stubs = Stubs(server.channel)
        taken = take_in(stubs, blob).session
        assert taken.position == 24
        assert stubs.score([5], session_id=taken.session_id).solver.solved_tokens == 1

    @pytest.mark.parametrize("lack", ["states", "numbers", "rows", "checkpoint"])
    def test_without(self, server, blob, lack):
        snapshot = read_blob(blob).snapshot
        states = snapshot.states
        assert states is not None
        nan = struct.pack("<f", float("nan"))
        fewer = states.data[: 8 * states.d_model * 4]
        changed = {
            "states": {"states": None},
            "numbers": {"states": replace(states, data=nan + states.data[4:])},
            "rows": {"states": replace(states, rows=8, data=fewer)},
            "checkpoint": {"fingerprint": "another"},
        }[lack]
        stubs, engine = Stubs(server.channel), server.engine()
        before = engine.snapshot().sessions
        told = fails(lambda: take_in(stubs, write_blob(replace(snapshot, **changed))))
        assert (told.code, told.fields) == ("INVALID_ARGUMENT", ("blob",))
        assert "blob must have at most 20 tokens" in told.message
        assert told.message.endswith("got 24")
        assert engine.snapshot().sessions == before
        short = replace(snapshot, tokens=snapshot.tokens[:80], **changed)
        taken = take_in(stubs, write_blob(short)).session
        assert stubs.score([5], session_id=taken.session_id).solver.solved_tokens > 20


def test_what_is_refused(stubs, session):
    blob = give_out(stubs, session)
    for wrong, problem in [
        (blob[:-1], "the checksum is wrong"),
        (blob[:100] + b"?" + blob[101:], "the checksum is wrong"),
        (blob[:-40] + bytes(8) + blob[-32:], "do not have the digest"),
        (b"", "takes more than 0 bytes"),
        (b"\x80\x04\x95" + bytes(100), "the bytes are no session"),
        (write_blob(read_blob(blob).snapshot, key=b"0123456789abcdef"), "there is no key"),
    ]:
        told = fails(lambda wrong=wrong: take_in(stubs, wrong))
        assert (told.code, told.fields) == ("INVALID_ARGUMENT", ("blob",))
        assert problem in told.message
    told = fails(lambda: take_in(stubs, blob, model="words"))
    assert "token ids below 22" in told.message
    assert fails(lambda: take_in(stubs, blob, model="no")).reason == "MODEL_NOT_FOUND"
    assert fails(lambda: take_in(stubs, blob, ttl_s=-1.0)).fields == ("ttl_s",)
    assert fails(lambda: give_out(Stubs(stubs.channel, owner="eve"), session)).code == "NOT_FOUND"


def test_a_key_signs(make_server, tmp_path: Path):
    file = tmp_path / "key"
    file.write_text("a key that nobody guesses\n")
    stubs = Stubs(make_server(session_key_file=str(file)).channel)
    session = stubs.create()
    stubs.score(TEXT, session_id=session)
    blob = give_out(stubs, session)
    assert take_in(stubs, blob).session.position > 0
    unsigned = write_blob(read_blob(blob, key=b"a key that nobody guesses").snapshot)
    assert "must be signed, and is not" in fails(lambda: take_in(stubs, unsigned)).message


@pytest.mark.parametrize(("content", "problem"), [(None, "cannot read"), ("short", "at least 16")])
def test_a_key_file_that_is_none(tmp_path, content, problem):
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartError, match=problem):
        Server(ServerConfig(session_key_file=str(file)))


def test_the_same_key_makes_one_session(stubs, session):
    blob = give_out(stubs, session)
    ids = {take_in(stubs, blob, idempotency_key="a").session.session_id for _ in range(2)}
    assert len(ids) == 1
    assert take_in(stubs, blob).session.session_id not in ids


def test_from_the_command_line(live_server, tmp_path, capsys):
    with Client(live_server.address) as client:
        with client.session() as session:
            client.score(TEXT, session=session.session_id)
            position = session.refresh().position
            file = str(tmp_path / "session.blob")
            common = ["--address", live_server.address]
            assert main(["export", session.session_id, file, *common], "deqlm session") == 0
            assert (tmp_path / "session.blob").stat().st_mode & 0o077 == 0
        assert main(["import", file, *common], "deqlm session") == 0
        new = capsys.readouterr().out.strip()
        assert client.get_session(new).position == position
        client.delete_session(new)
        assert main(["import", str(tmp_path / "no"), *common], "deqlm session") == 2
        assert "cannot read" in capsys.readouterr().err
