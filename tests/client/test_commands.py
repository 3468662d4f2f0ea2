"""The commands, run in this process against a scripted server."""

import json
import re
import socket
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2

from client.commands import _common
from tests.client.fake_server import TEXT, Failure


def test_session_commands(deqlm, fake):
    assert deqlm("session", "create", "--ttl-s", "60", "--model", "tiny")[:2] == (0, "s1\n")
    assert (fake.calls[-1].request.ttl_s, fake.calls[-1].request.model) == (60, "tiny")
    assert deqlm("session", "fork", "s1")[:2] == (0, "s2\n")
    assert deqlm("session", "delete", "s1", "s2")[:2] == (0, "")
    assert fake.methods()[-2:] == ["DeleteSession"] * 2
    out = deqlm("session", "get", "s1")[1]
    assert out.splitlines()[1].split()[:3] == ["s1", "tiny", "3"]
    assert deqlm("session", "list")[1] == out


def test_session_json(deqlm):
    assert json.loads(deqlm("session", "get", "s1", "--json")[1])["session_id"] == "s1"
    assert json.loads(deqlm("session", "create", "--json")[1])["position"] == 3
    assert len(json.loads(deqlm("session", "list", "--json")[1])["sessions"]) == 1
    assert json.loads(deqlm("session", "delete", "s1", "--json")[1]) == {"deleted": ["s1"]}


def test_info_lists_models_or_details_one(deqlm):
    out = deqlm("info")[1]
    assert "tiny (default)" in out
    assert "12.35M" in out
    assert "word 100" in out
    assert "deqlm 0.1.0 (0123456789ab), torch 2.13.0 at " in out
    assert "0123456789abcdef" in out
    details = deqlm("info", "--model", "tiny")[1]
    assert re.search(r"^default_solver.tol +0.001$", details, re.MULTILINE)
    assert json.loads(deqlm("info", "--json")[1])["models"][0]["n_parameters"] == 12_345_678


def test_tokenize_takes_text_a_file_or_ids(deqlm, fake, text_file):
    out = deqlm("tokenize", "a bc")[1]
    assert out.splitlines()[1:] == [
        "    0    1   1  a",
        "    2    4   2  bc",
        "2 tokens, 0 unknown",
    ]
    deqlm("tokenize", text_file)
    assert fake.calls[-1].request.text == TEXT
    assert deqlm("tokenize", "--ids", "4", "5")[1] == "4 5\n"
    assert json.loads(deqlm("tokenize", "a", "--json")[1])["tokens"][0]["token_id"] == 1
    assert json.loads(deqlm("tokenize", "--ids", "4", "--json")[1])["text"] == "4"


def test_an_error_is_one_line_with_its_status(deqlm, fake, text_file):
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="top_k", description="must be in [0, 50], got 99"
    )
    fake.queue(
        "Score",
        Failure(
            code=grpc.StatusCode.INVALID_ARGUMENT,
            message="the request is invalid",
            details=(error_details_pb2.BadRequest(field_violations=[violation]),),
        ),
    )
    code, out, err = deqlm("score", text_file, "--top-k", "99")
    assert (code, out) == (1, "")
    assert err == (
        "deqlm score: INVALID_ARGUMENT: the request is invalid; top_k: must be in [0, 50], got 99\n"
    )


def test_a_server_that_is_not_there_is_named(deqlm):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code, _, err = deqlm("info", address=address)
    assert code == 1
    assert err.startswith(f"deqlm info: UNAVAILABLE: no server answers at {address}")
    assert "deqlm serve" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["score", "tokenize"])
def test_a_file_that_is_not_text_is_refused(deqlm, fake, tmp_path, command):
    path = tmp_path / "binary"
    path.write_bytes(b"ab\xff")
    code, _, err = deqlm(command, str(path))
    assert code == 2
    assert err == f"deqlm {command}: {path} is not UTF-8: invalid start byte at byte 2\n"
    assert fake.calls == []


def test_a_file_that_is_missing_is_named(deqlm, tmp_path):
    code, _, err = deqlm("score", str(tmp_path / "none"))
    assert code == 2
    assert err == f"deqlm score: cannot read {tmp_path / 'none'}: No such file or directory\n"


@pytest.mark.parametrize("command", ["score", "session", "tokenize"])
def test_a_command_without_its_arguments_is_a_usage_error(deqlm, command):
    assert deqlm(command)[0] == 2


def test_the_address_comes_from_the_environment(fake, monkeypatch, capsys):
    monkeypatch.setenv("DEQLM_ADDRESS", fake.address)
    from client.commands import info

    assert info.main([], "deqlm info") == 0
    assert fake.address in capsys.readouterr().out


def test_json_has_no_numbers_that_json_lacks(capsys):
    _common.print_json({"a": float("inf"), "b": (float("nan"), 1.0)}, indent=None)
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.0]}\n'


@pytest.mark.parametrize("command", ["score", "generate", "session", "info", "tokenize"])
def test_a_command_starts_light(command, environment):
    code = (
        f"import sys, client.commands.{command}; "
        "heavy = {'torch', 'numpy', 'rich', 'sentencepiece'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
