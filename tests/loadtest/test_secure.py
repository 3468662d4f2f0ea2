"""A server that encrypts and knows its callers; so does its page of metrics."""

import pytest
import trustme

from tests.loadtest.made import lines
from tests.server.live import LiveServer
from tests.server.security import people
from tests.server.security.certificates import issue, server_options

SHORT = ("--load.seconds", "1", "--load.warmup-s", "0", "--load.rates", "8", "--mix.session", "0")


@pytest.fixture(scope="module")
def secure(tiny_models, tmp_path_factory):
    """A server, and flags by which it is reached."""
    folder = tmp_path_factory.mktemp("secure")
    files = issue(folder, "server", trustme.CA(), "127.0.0.1")
    rights = {"rights": ["score", "generate", "metrics"]}
    auth = people.write(folder / "auth.yaml", people.people(ann=rights))
    server = LiveServer(tiny_models, auth_file=auth, max_sessions=64, **server_options(files))
    token = folder / "token"
    token.write_text(people.TOKENS["ann"])
    flags = ("--address", server.address, "--tls-ca", files.ca, "--token-file", token)
    yield (*flags, "--metrics", f"https://{server.metrics_address}/metrics")
    server.close()


def test_a_run_by_a_known_caller(loadtest, secure, tmp_path):
    out = tmp_path / "run"
    code, told, progress = loadtest("run", *secure, *SHORT, "--out", out)
    assert code == 0, told + progress
    assert "agree with the server's metrics" in told
    assert "OK" in {record["status"] for record in lines(out, "requests-*.jsonl")}
    for path in out.iterdir():
        assert people.TOKENS["ann"] not in path.read_text()


def test_nobody_that_it_knows(loadtest, secure, tmp_path, monkeypatch):
    monkeypatch.delenv("DEQLM_TOKEN", raising=False)
    flags = [flag for flag in secure if flag not in secure[4:6]]
    code, _, told = loadtest("run", *flags, *SHORT, "--out", tmp_path / "run")
    assert code == 1
    assert "UNAUTHENTICATED" in told and "does not know who calls" in told


def test_metrics_are_not_told_to_everybody(loadtest, secure, tmp_path):
    """The token of somebody who may call, but not look."""
    token = tmp_path / "token"
    token.write_text(people.TOKENS["bob"])
    flags = [token if flag == secure[5] else flag for flag in secure]
    code, _, told = loadtest("run", *flags, *SHORT, "--out", tmp_path / "run")
    assert code == 1
    assert "metrics cannot be read" in told and "--metrics none" in told
