"""Tokens travel with every call, and never where others could read them."""

import asyncio
import queue
import socket
import threading

import pytest

from client._addresses import is_here
from client._retry import RetryPolicy
from client.aio import AsyncClient
from client.credentials import Tls
from client.errors import DeqlmError, InvalidArgument, PermissionDenied, Unauthenticated
from client.sync import Client
from tests.client.fake_server import Failure

TOKEN = "deqlm_0123456789-the-token"


def sent(fake):
    return [call.metadata.get("authorization") for call in fake.calls]


def test_a_token_goes_with_every_call(fake):
    with Client(fake.address, token=TOKEN) as client:
        client.score("It")
        list(client.score_stream(["It "]))
        list(client.generate("It"))
        client.create_session()
        client.tokenize("It")
        client.models()
    assert len(fake.calls) == 6
    assert set(sent(fake)) == {f"Bearer {TOKEN}"}


def test_a_token_goes_with_every_call_of_asyncio(fake):
    async def act():
        async with AsyncClient(fake.address, token=TOKEN, owner="ann") as client:
            await client.score("It")

    asyncio.run(act())
    assert sent(fake) == [f"Bearer {TOKEN}"]
    assert fake.calls[0].metadata["deqlm-owner"] == "ann"


def test_without_one_there_is_none(fake):
    with Client(fake.address) as client:
        client.score("It")
    assert sent(fake) == [None]


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1:1", True),
        ("localhost:50051", True),
        ("[::1]:1", True),
        ("unix:/run/deqlm", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("example.org:1", False),
        ("10.0.0.1:1", False),
        ("dns:///example.org:1", False),
        ("localhost.example.org:1", False),
        ("xds:///localhost:1", False),
    ],
)
def test_a_token_does_not_leave_this_machine_unencrypted(address, here):
    assert is_here(address) == here
    if here:
        Client(address, token=TOKEN).close()
        return
    for make in (Client, AsyncClient):
        with pytest.raises(
            InvalidArgument, match=r"^token must not go to .* unencrypted"
        ) as caught:
            make(address, token=TOKEN)
        assert TOKEN not in str(caught.value)
    Client(address, token=TOKEN, tls=Tls()).close()
    Client(address, token=TOKEN, send_token_unencrypted=True).close()


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é"])
def test_what_is_no_token(token):
    with pytest.raises(InvalidArgument, match=r"^token must be one word of printable ASCII$"):
        Client("localhost:1", token=token)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"ca": "no.pem"}, "tls.ca cannot be read from .*no.pem: No such file"),
        ({"ca": "bad.pem"}, "tls.ca must be certificates in PEM, got .*bad.pem"),
        ({"cert": "bad.pem"}, "tls.key must be set"),
        ({"key": "bad.pem"}, "tls.cert must be set"),
        ({"cert": "bad.pem", "key": "bad.pem"}, "tls.cert must be a certificate in PEM and its"),
        ({"cert": "no.pem", "key": "bad.pem"}, "tls.cert cannot be read from"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, files, problem):
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(InvalidArgument, match=problem):
        Client(tls=Tls(**{name: tmp_path / file for name, file in files.items()}))


class TestCommands:
    def test_the_file_goes_before_the_environment(self, deqlm, fake, tmp_path, monkeypatch):
        monkeypatch.setenv("DEQLM_TOKEN", "from-environment")
        assert deqlm("info")[0] == 0
        path = tmp_path / "token"
        path.write_text(TOKEN + "\n")
        assert deqlm("info", "--token-file", str(path))[0] == 0
        assert sent(fake) == ["Bearer from-environment", f"Bearer {TOKEN}"]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (None, "token_file cannot be read from FILE: No such file or directory"),
            (b"", "token_file FILE must hold a token alone, got 0 words"),
            (b"secret words", "token_file FILE must hold a token alone, got 2 words"),
            (b"\xff", "token_file FILE must hold a token alone"),
        ],
    )
    def test_a_file_that_holds_none(self, deqlm, tmp_path, content, problem):
        path = tmp_path / "token"
        if content is not None:
            path.write_bytes(content)
        code, _, told = deqlm("info", "--token-file", str(path))
        assert (code, told) == (2, f"deqlm info: {problem.replace('FILE', str(path))}\n")

    def test_it_stays_here(self, deqlm, fake, monkeypatch):
        monkeypatch.setenv("DEQLM_TOKEN", TOKEN)
        code, _, told = deqlm("info", address="example.org:1")
        assert code == 2
        assert told.startswith("deqlm info: token must not go to example.org:1 unencrypted")
        assert "--tls-ca" in told
        assert TOKEN not in told

    def test_help_does_not_show_it(self, deqlm, monkeypatch):
        monkeypatch.setenv("DEQLM_TOKEN", TOKEN)
        for command in (["score"], ["generate"], ["session", "list"], ["tokenize"], ["info"]):
            code, out, told = deqlm(*command, "--help")
            assert code == 0
            assert "DEQLM_TOKEN" in out
            assert TOKEN not in out + told

    def test_refusals_say_what_to_do(self, deqlm, fake):
        code = Unauthenticated.code
        fake.queue("ListModels", Failure(code=code, message="the caller must be known"))
        status, _, told = deqlm("info")
        assert status == 1
        assert told.startswith(f"deqlm info: UNAUTHENTICATED: {fake.address} does not know who")
        assert "--token-file" in told
        fake.queue("ListModels", Failure(code=PermissionDenied.code, message="needs the right x"))
        assert deqlm("info")[2] == "deqlm info: PERMISSION_DENIED: needs the right x\n"


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that http_proxy names; what it is sent."""
    seen = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    seen.put(connection.recv(4096))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield seen
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_token_for_this_machine_goes_to_no_proxy(fake, proxy):
    with Client(fake.address, token=TOKEN) as client:
        client.score("It")
    assert sent(fake) == [f"Bearer {TOKEN}"]
    assert proxy.empty()
    with Client(fake.address, timeout_s=0.5, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(DeqlmError):
            client.score("It")
    assert proxy.get(timeout=5).startswith(b"CONNECT"), "without a token it is as ever"
