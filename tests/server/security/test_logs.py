"""Users' text and secrets do not get into the log, metrics or messages."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import traceback
import urllib.request
from urllib.parse import quote

import grpc
import pytest

from deqlm.v1 import (
    admin_pb2,
    common_pb2,
    generation_pb2,
    model_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)
from server.__main__ import main
from server.config import ServerConfig, ServerConfigError
from server.logs import Formatter
from server.options import parse_config
from server.security.rights import METHODS
from server.store.base import Entry, StoreOpenError
from server.store.opening import open_store
from tests.server.calls import FLUSH, TIMEOUT_S, Stubs, fails, to_input
from tests.server.test_process import ROOT, Process

SECRET = "zebrafish"
"""Stands in no vocabulary, so that it is in the log only if it was sent there."""
TEXT = f"the of {SECRET} and"


def raw(channel, method, data):
    """Call a method with bytes that no client of the contract would send."""
    call = channel.unary_unary(f"/deqlm.v1.{method}", lambda x: x, lambda x: x)
    with contextlib.suppress(grpc.RpcError):
        call(data, timeout=TIMEOUT_S)


def everything(stubs):
    """Every method with the text wherever there may be one, in order and not."""
    options = {"timeout": TIMEOUT_S, "metadata": stubs.metadata}
    session = stubs.create(idempotency_key=SECRET)
    bad = common_pb2.SolverOptions(tol=5.0)
    stop = generation_pb2.StopOptions(max_tokens=3, stop_strings=[SECRET])

    def generate(**fields):
        request = generation_pb2.GenerateRequest(prompt=to_input(TEXT), stop=stop, **fields)
        return list(stubs.generate(request))

    blob = stubs.sessions.ExportSession(
        session_pb2.ExportSessionRequest(session_id=session), **options
    ).blob
    for call in (
        lambda: stubs.score(TEXT),
        lambda: stubs.score(TEXT, session_id=session, idempotency_key=SECRET),
        lambda: stubs.score(SECRET),
        lambda: stubs.score(TEXT, candidates=[to_input(SECRET)], solver=bad),
        lambda: stubs.score(TEXT, model=SECRET),
        lambda: stubs.score(TEXT, session_id=SECRET),
        lambda: list(stubs.stream([TEXT, FLUSH, TEXT], session_id=session)),
        lambda: list(stubs.stream([TEXT, scoring_pb2.ScoreStreamRequest(), SECRET])),
        generate,
        lambda: generate(session_id=session),
        lambda: generate(logprobs=10**6),
        lambda: stubs.get(SECRET),
        lambda: stubs.fork(session, idempotency_key=SECRET),
        lambda: stubs.delete(SECRET),
        lambda: stubs.list(page_token=SECRET),
        lambda: stubs.sessions.ImportSession(
            session_pb2.ImportSessionRequest(blob=blob), **options
        ),
        lambda: stubs.sessions.ImportSession(
            session_pb2.ImportSessionRequest(blob=SECRET.encode() + blob), **options
        ),
        lambda: stubs.tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(text=TEXT), **options),
        lambda: stubs.tokenizer.Tokenize(
            tokenizer_pb2.TokenizeRequest(text=TEXT, model=SECRET), **options
        ),
        lambda: stubs.tokenizer.Detokenize(
            tokenizer_pb2.DetokenizeRequest(token_ids=common_pb2.TokenIds(ids=[10**6])), **options
        ),
        lambda: stubs.models.GetModel(model_pb2.GetModelRequest(name=SECRET), **options),
        lambda: stubs.models.ListModels(model_pb2.ListModelsRequest(), **options),
        lambda: stubs.admin.CheckInvariants(admin_pb2.CheckInvariantsRequest(), **options),
        lambda: stubs.admin.Profile(admin_pb2.ProfileRequest(model=SECRET), **options),
    ):
        with contextlib.suppress(grpc.RpcError):
            call()
    for method in (*METHODS, f"{SECRET}/{SECRET}"):
        for data in (SECRET.encode(), b"\x0a" + bytes([len(SECRET)]) + SECRET.encode(), b"\xff"):
            raw(stubs.channel, method, data)
    stranger = Stubs(stubs.channel, owner=SECRET)
    stranger.metadata += (("authorization", f"Bearer {SECRET}"), ("x-note", SECRET))
    with contextlib.suppress(grpc.RpcError):
        stranger.score(TEXT)


def test_a_server_that_logs_everything_logs_no_text(tiny_models):
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "0"),
        *("--log-level", "debug"),
    )
    try:
        ready = process.wait_ready()
        with grpc.insecure_channel(ready[2]) as channel:
            everything(Stubs(channel))
        with urllib.request.urlopen(ready[3], timeout=20) as page:
            metrics = page.read().decode()
    finally:
        process.process.terminate()
    assert process.wait() == 0
    log = "".join(process.lines)
    assert "ended with INVALID_ARGUMENT" in log, "it does log what happens"
    assert SECRET not in log
    assert SECRET not in metrics


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), KeyError(SECRET), UnicodeEncodeError("ascii", SECRET, 0, 1, "x")]
)
def test_a_defect_is_logged_without_what_it_says(make_server, error):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(Formatter())
    logging.getLogger().addHandler(handler)
    try:
        server = make_server()

        def broken(text):
            try:
                raise error
            except Exception as cause:
                raise TypeError(f"cannot encode {text}") from cause

        server.engine().tokenizer.encode = broken
        told = fails(lambda: Stubs(server.channel).score(TEXT))
    finally:
        logging.getLogger().removeHandler(handler)
    text = log.getvalue()
    assert told.metadata["request_id"] in text
    assert f"builtins.{type(error).__name__}: (what it says is not logged" in text
    assert "builtins.TypeError: (what" in text
    assert "in broken" in text, "where it was is what finds the defect"
    assert SECRET not in text
    assert SECRET not in told.message


class TestFormatter:
    def formatted(self, error, **options):
        try:
            raise error
        except BaseException as caught:
            info = (type(caught), caught, caught.__traceback__)
            return Formatter(**options).formatException(info)

    def test_what_the_system_says_is_kept(self):
        assert "No space left" in self.formatted(OSError(28, "No space left on device"))
        assert "RuntimeError: shapes" in self.formatted(RuntimeError("shapes do not fit"))

    def test_all_is_kept_where_that_is_asked_for(self):
        assert SECRET in self.formatted(ValueError(SECRET), has_messages=True)

    def test_a_ring_of_causes_ends(self):
        one, other = ValueError("a"), ValueError("b")
        one.__cause__, other.__cause__ = other, one
        assert self.formatted(one).count("ValueError") == 2


def test_passwords_are_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("DEQLM_SESSION_STORE", f"redis://:{SECRET}@localhost:1/0")
    monkeypatch.setenv("DEQLM_TOKEN", SECRET)
    with pytest.raises(SystemExit):
        parse_config(["--help"], "deqlm serve")
    assert SECRET not in capsys.readouterr().out
    for store in (f"reddis://:{SECRET}@localhost:1/0", SECRET):
        with pytest.raises(ServerConfigError, match=r"session_store must be .*'redis:…'") as caught:
            ServerConfig(session_store=f"redis:{store}")
        assert SECRET not in str(caught.value)


PASSWORDS = [
    # What a library takes for a host, a port, a path, options or a comment.
    *("Rest=/zebrafish", "1234/zebrafish", "zebrafish/1234/5678", "a/zebrafish/@"),
    *("Rest=#zebrafish", "1234#zebrafish", "Rest=?zebrafish", "1234?zebrafish=1"),
    *("Rest=@zebra/fish", "zebrafish@1234", "[zebrafish", "zebrafish]", "zebra:fish/1234"),
]
"""Not percent-encoded, as one copies them."""


def parts(password):
    """What must not be told: everything in it that is four characters long."""
    return [password[i : i + 4] for i in range(len(password) - 3)]


def urls(password):
    """With the user's name and without, and where something is missing."""
    for user in ("", "ann"):
        for rest in ("@127.0.0.1:1/0", "@127.0.0.1", "@", ""):
            if rest or "@" not in password:  # what follows the only @ is a host
                yield f"redis://{user}:{password}{rest}"


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_that_is_not_encoded_is_not_told(password):
    """Neither by the configuration nor by a store that is opened without one."""
    for url in urls(password):
        errors = []
        for attempt in (
            lambda url=url: ServerConfig(session_store=url),
            lambda url=url: ServerConfig(session_store=url.replace("redis", "Redis", 1)),
            lambda url=url: open_store(url, sync="normal", timeout_s=0.1),
        ):
            try:
                attempt()
            except (ServerConfigError, StoreOpenError) as error:
                errors.append(error)
        assert errors, "there is nothing at port 1"
        for error in errors:
            told = "".join(traceback.format_exception(error, limit=0)) + repr(error)
            assert not [part for part in parts(password) if part in told], url


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_server_does_not_tell_it_either(log_format, tiny_models):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
        "DEQLM_SESSION_STORE": "redis://:s3cr3t/Rest=@127.0.0.1:6379/0",
    }
    arguments = ["--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"]
    command = [sys.executable, "-m", "server", *arguments, "--log-format", log_format]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0
    told = ended.stdout + ended.stderr
    assert "session_store must be" in told
    assert "redis://[USER:PASSWORD@]HOST:PORT/DB, with / # ? @ of a password as %2F" in told
    assert not [part for part in parts("s3cr3t/Rest=") if part in told]


def test_one_that_is_encoded_gets_there(redis_server):
    """To a server that lets nobody in without it."""
    import redis

    password = "s3cr3t/Rest=#?@:%41"
    admin = redis.Redis.from_url(redis_server.url)
    admin.config_set("requirepass", password)
    try:
        url = redis_server.url.replace("//", f"//:{quote(password, safe='')}@")
        ServerConfig(session_store=url)
        store = open_store(url, sync="normal", timeout_s=5.0)
        store.write([Entry("a", b"h", b"b")], [])
        assert store.read("a") == b"b"
        store.close()
        with pytest.raises(StoreOpenError, match=r"cannot open redis 127") as caught:
            open_store(url.replace("s3cr3t", "wr0ng"), sync="normal", timeout_s=5.0)
        assert not [part for part in parts("wr0ng/Rest=#?@:%41") if part in repr(caught.value)]
    finally:
        admin.config_set("requirepass", "")
        admin.close()


def test_a_store_that_does_not_answer_is_named_without_its_password(tiny_models, capsys):
    arguments = [
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
        *("--session-store", f"redis://:{SECRET}@127.0.0.1:1/0", "--log-level", "error"),
    ]
    assert main(arguments, "deqlm serve") == 1
    told = capsys.readouterr().err
    assert "redis 127.0.0.1:1/0" in told
    assert SECRET not in told
