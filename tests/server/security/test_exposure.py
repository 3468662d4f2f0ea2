"""A server that is open to the world is one that somebody asked for."""

import pytest

from server.__main__ import main
from server.app import Server
from server.config import ServerConfig, ServerConfigError
from server.security.exposure import is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"]
)
def test_this_machine(host):
    assert is_loopback(host)
    ServerConfig(host=host).check_exposure()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.x", ""]
)
def test_beyond_it(host):
    assert not is_loopback(host)
    with pytest.raises(ServerConfigError, match=r"^host must be of this machine alone.*--insecure"):
        Server(ServerConfig(host=host))
    with pytest.raises(ServerConfigError, match=r"^metrics_host must be of this machine alone"):
        Server(ServerConfig(metrics_host=host))
    ServerConfig(metrics_host=host, metrics_port=-1).check_exposure()
    ServerConfig(host=host, metrics_host=host, insecure=True).check_exposure()


def test_the_command_says_so_in_one_line(capsys, tiny_models):
    code = main(["--model", f"a={tiny_models / 'words'}", "--host", "0.0.0.0"], "deqlm serve")
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith("deqlm serve: host must be of this machine alone (127.0.0.1, ::1,")
    assert "got 0.0.0.0" in told
    assert told.count("\n") == 1


def test_what_was_asked_for_is_done(make_server):
    server = make_server(host="0.0.0.0", metrics_host="0.0.0.0", insecure=True)
    assert server.address.startswith("0.0.0.0:")
