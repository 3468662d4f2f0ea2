"""What administrators do is written down, whatever the log's level."""

import json
import logging
import os
import stat

import pytest

from deqlm.v1 import admin_pb2, model_pb2
from server.app import Server
from server.config import ServerConfig
from server.security import rights
from server.security.audit import Audit
from server.security.errors import SecurityFileError
from tests.server.calls import TIMEOUT_S, fails
from tests.server.security.people import people, stubs_of, write


@pytest.fixture
def file(tmp_path):
    return tmp_path / "audit.log"


@pytest.fixture
def server(make_server, tmp_path, file, monkeypatch):
    """A server on which an act of administrators can fail as well."""
    monkeypatch.setitem(rights.METHODS, "ModelService/GetModel", rights.ADMIN)
    path = write(tmp_path / "auth.yaml", people())
    return make_server(auth_file=path, audit_log=file)


def get_model(server, name, model=""):
    stubs = stubs_of(server.channel, name)
    request = model_pb2.GetModelRequest(name=model)
    return stubs.models.GetModel(request, timeout=TIMEOUT_S, metadata=stubs.metadata)


def check(server, name):
    stubs = stubs_of(server.channel, name)
    request = admin_pb2.CheckInvariantsRequest()
    return stubs.admin.CheckInvariants(request, timeout=TIMEOUT_S, metadata=stubs.metadata)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_who_did_what_and_what_came_of_it(server, file):
    assert not check(server, "root").problems
    missing = fails(lambda: get_model(server, "root", "no"))
    denied = fails(lambda: check(server, "ann"))
    assert denied.code == "PERMISSION_DENIED"
    server.run(server.server._guard.wait_idle(10))
    done, failed, refused = lines(file)
    assert (done["who"], done["result"]) == ("root", "OK")
    assert done["action"] == refused["action"] == "AdminService/CheckInvariants"
    assert failed["action"] == "ModelService/GetModel"
    assert (failed["who"], failed["result"]) == ("root", "NOT_FOUND")
    assert (refused["who"], refused["result"]) == ("ann", "PERMISSION_DENIED")
    assert failed["request_id"] == missing.metadata["request_id"]
    assert done["peer"].startswith("ipv4:127.0.0.1:")
    assert done["time"] <= failed["time"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_no_administration_is_not(server, file):
    stubs_of(server.channel, "ann").score("It")
    assert lines(file) == []


def test_files_read_anew(server, file, tmp_path):
    async def reload():
        server.server.reload()

    server.run(reload())
    (tmp_path / "auth.yaml").write_text("nobody")
    server.run(reload())
    found = [(line["who"], line["action"], line["result"]) for line in lines(file)]
    assert found == [
        ("a signal", "reload principals", "OK"),
        ("a signal", "reload principals", "FAILED"),
    ]


def test_a_check(server, file):
    server.run(server.server.check())
    assert [(line["who"], line["action"]) for line in lines(file)] == [("a signal", "check")]


def test_a_file_that_was_moved_away_is_begun_anew(file, tmp_path):
    audit = Audit(file)
    audit.record(who="root", action="a", result="OK")
    file.rename(tmp_path / "audit.1")
    audit.record(who="root", action="b", result="OK")
    assert [line["action"] for line in lines(file)] == ["b"]


def test_without_a_file_the_log_has_it_and_no_line_is_lost(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "server.audit"):
        Audit(None).record(who="root", action="a\nb", result="OK")
        broken = Audit(tmp_path / "audit.log")
        (tmp_path / "audit.log").unlink()
        (tmp_path / "audit.log").mkdir()
        broken.record(who="root", action="c", result="OK")
    told = [r for r in caplog.records if r.name == "server.audit"]
    assert [json.loads(r.getMessage())["action"] for r in told] == ["a\nb", "c"]
    assert "\n" not in told[0].getMessage()
    assert "audit_log cannot be written: Is a directory" in caplog.text


def test_a_pipe_without_a_reader_hangs_nobody(caplog, file):
    os.mkfifo(file)
    with pytest.raises(SecurityFileError, match=r"audit_log cannot be written to .*: No such dev"):
        Audit(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(file)
    audit.record(who="root", action="a", result="OK")
    assert json.loads(os.read(reader, 1000))["action"] == "a"
    os.close(reader)
    with caplog.at_level(logging.INFO, "server.audit"):
        audit.record(who="root", action="b", result="OK")
    told = [r.getMessage() for r in caplog.records if r.name == "server.audit"]
    assert [json.loads(line)["action"] for line in told] == ["b"]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(SecurityFileError, match=r"audit_log cannot be written to .*: Is a direc"):
        Server(ServerConfig(audit_log=tmp_path))
