"""A server and its clients as processes: from no file at all to a text that is scored."""

import os
import re
import signal
import subprocess
import sys

import pytest
import trustme
import yaml

from server.__main__ import main
from tests.server.security.certificates import issue, server_options
from tests.server.test_process import ROOT, Process

HERE = "127.0.0.1"


def deqlm(*arguments, text=None, **variables):
    """Exit code, standard output and standard error of a command."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEQLM_")}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": path} | variables,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def flags(options):
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def world(tmp_path, tiny_models):
    """A server with certificates and principals whose tokens the command has made."""
    entries = {}
    for name in ("ann", "bob"):
        code, line, _ = deqlm("token", "create", "--out", tmp_path / f"{name}.token")
        assert code == 0
        entries[name] = yaml.safe_load(line)
    rights = {"ann": ["score"], "bob": ["generate"]}
    principals = {n: {"rights": rights[n], "tokens": e} for n, e in entries.items()}
    auth = tmp_path / "auth.yaml"
    auth.write_text(yaml.safe_dump({"principals": principals}))
    files = issue(tmp_path, "server", trustme.CA(), HERE)
    options = server_options(files, auth_file=auth)
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "0"),
        *("--log-level", "debug"),
        *flags({name.replace("_", "-"): value for name, value in options.items()}),
    )
    yield process, files, auth, tmp_path
    process.process.terminate()
    assert process.wait() == 0
    log = "".join(process.lines)
    for name in ("ann", "bob"):
        assert (tmp_path / f"{name}.token").read_text().strip() not in log
    assert "BEGIN" not in log and "Traceback" not in log


def test_a_server_that_asks_and_encrypts(world):
    process, files, auth, folder = world
    ready = process.wait_ready()
    assert ready[3].startswith("https://")
    address = ready[2]
    to = ("--address", address, "--tls-ca", files.ca)

    def score(*more, **variables):
        return deqlm("score", *to, *more, "--json", "-", text="the of and", **variables)

    ann, bob = folder / "ann.token", folder / "bob.token"
    code, out, told = score("--token-file", ann)
    assert (code, told) == (0, "")
    assert '"logprob"' in out
    assert score(DEQLM_TOKEN=ann.read_text().strip())[0] == 0

    code, _, told = score()
    assert code == 1
    assert told.startswith(f"deqlm score: UNAUTHENTICATED: {address} does not know who calls")
    assert score(DEQLM_TOKEN="wrong")[2] == told

    code, _, told = score("--token-file", bob)
    assert code == 1
    assert told.startswith(
        "deqlm score: PERMISSION_DENIED: Score needs the right score, which 'bob' does not have; "
        "request "
    )

    issue(folder, "other", trustme.CA(), HERE)
    code, _, told = score("--token-file", ann, "--tls-ca", folder / "other.ca.pem")
    assert code == 1
    assert "UNAVAILABLE: no encrypted connection to" in told
    assert "--tls-ca" in told
    assert told.count("\n") == 1, "gRPC's core says nothing beside it"

    # Without TLS the token may go, as it goes to this machine; the server does not take it.
    code, _, told = deqlm("score", "--address", address, "--token-file", ann, "-", text="the")
    assert code == 1
    assert told.startswith(f"deqlm score: UNAVAILABLE: {address} closes the connection (")
    assert "--tls-ca" in told and told.count("\n") == 1

    content = yaml.safe_load(auth.read_text())
    content["principals"]["ann"]["tokens"] = []
    auth.write_text(yaml.safe_dump(content))
    process.process.send_signal(signal.SIGHUP)
    process.wait_line(re.compile("principals have been read anew"))
    assert score("--token-file", ann)[0] == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--auth-file", "FILE"], "auth_file: FILE must hold keys and values"),
        (["--tls-cert", "no", "--tls-key", "no"], "tls_cert cannot be read from no: No such file"),
    ],
)
def test_what_the_server_cannot_read(tmp_path, tiny_models, capsys, options, problem):
    path = tmp_path / "auth.yaml"
    path.write_text("deqlm_a-token-by-mistake")
    model = ["--model", f"a={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"]
    given = [str(path) if option == "FILE" else option for option in options]
    assert main([*model, *given, "--log-level", "error"], "deqlm serve") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"deqlm serve: {problem.replace('FILE', str(path))}")
    assert told.count("\n") == 1
    assert "mistake" not in told
