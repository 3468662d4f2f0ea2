"""Certificates: the right ones, wrong ones, and others while the server runs."""

import datetime
import queue
import ssl
import threading
import time
import urllib.request

import pytest
import trustme

from client.credentials import Tls
from client.errors import PermissionDenied, Unauthenticated, Unavailable
from client.sync import Client, RetryPolicy
from server.app import Server
from server.config import ServerConfig, ServerConfigError
from server.security.tls import TlsError, read_certificates
from tests.server.security.certificates import issue, server_options
from tests.server.security.people import TOKENS, people, write

ONCE = RetryPolicy(max_attempts=1)
HERE = "127.0.0.1"
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
LONG_AGO = YESTERDAY - datetime.timedelta(days=30)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def other_authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """The server's."""
    return issue(tmp_path, "server", authority, HERE)


def client_of(server, ca, own=None, **more):
    tls = Tls(ca=ca, cert=own and own.cert, key=own and own.key)
    return Client(server.address, tls=tls, retry=ONCE, timeout_s=20, **more)


def refused(server, ca, own=None, **more):
    """What a client is told that gets no connection."""
    with client_of(server, ca, own, **more) as client:
        with pytest.raises(Unavailable) as caught:
            client.score("It")
    return caught.value.message


def served(server, ca, own=None, **more):
    with client_of(server, ca, own, **more) as client:
        return client.score("It").position == 1


def certificate_of(server):
    """The one that a new connection gets."""
    return ssl.get_server_certificate((HERE, server.server.port), timeout=20)


def certificate_in(files):
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(first(files.cert.read_text())))


def first(chain):
    end = "-----END CERTIFICATE-----\n"
    return chain.partition(end)[0] + end


class TestServer:
    def test_the_right_authority(self, make_server, files):
        server = make_server(**server_options(files))
        assert served(server, files.ca)

    def test_a_wrong_one(self, make_server, files, other_authority, tmp_path):
        other = issue(tmp_path, "other", other_authority, HERE)
        server = make_server(**server_options(files))
        assert "CERTIFICATE_VERIFY_FAILED" in refused(server, other.ca)

    def test_a_certificate_for_another_name(self, make_server, tmp_path, authority):
        files = issue(tmp_path, "server", authority, "example.org")
        server = make_server(**server_options(files))
        assert "Hostname Verification Check failed" in refused(server, files.ca)

    def test_no_encryption(self, make_server, files):
        server = make_server(**server_options(files))
        with Client(server.address, retry=ONCE, timeout_s=20) as client:
            with pytest.raises(Unavailable):
                client.score("It")
        assert served(server, files.ca)


class TestClientCertificates:
    @pytest.fixture
    def server(self, make_server, files):
        return make_server(**server_options(files, tls_client_ca=files.ca))

    def test_one_of_the_authority(self, server, files, authority, tmp_path):
        ann = issue(tmp_path, "ann", authority, "ann.example.org", common_name="Ann")
        assert served(server, files.ca, ann)

    def test_none(self, server, files):
        assert refused(server, files.ca)

    def test_one_of_another_authority(self, server, files, other_authority, tmp_path):
        assert refused(server, files.ca, issue(tmp_path, "eve", other_authority, "ann.example.org"))

    def test_one_that_has_expired(self, server, files, authority, tmp_path):
        old = issue(
            tmp_path, "old", authority, "ann.example.org", not_before=LONG_AGO, not_after=YESTERDAY
        )
        assert refused(server, files.ca, old)

    def test_they_own_sessions(self, server, files, authority, tmp_path):
        ann = issue(tmp_path, "ann", authority, "ann.example.org")
        bob = issue(tmp_path, "bob", authority, "bob.example.org")
        with client_of(server, files.ca, ann) as mine, client_of(server, files.ca, bob) as other:
            session = mine.create_session().session_id
            assert [s.session_id for s in mine.list_sessions()] == [session]
            assert other.list_sessions() == ()
        with client_of(server, files.ca, bob, owner="dns:ann.example.org") as other:
            with pytest.raises(PermissionDenied, match="deqlm-owner must be absent"):
                other.list_sessions()


def test_certificates_show_principals(make_server, files, authority, tmp_path):
    changes = {"identities": ["dns:ann.example.org", "cn:Ann"]}
    path = write(tmp_path / "auth.yaml", people(ann=changes, bob={"identities": ["cn:Bob"]}))
    server = make_server(**server_options(files, tls_client_ca=files.ca, auth_file=path))
    ann = issue(tmp_path, "ann", authority, "ann.example.org", common_name="Ann")
    bob = issue(tmp_path, "bob", authority, "x.example.org", common_name="Bob")
    eve = issue(tmp_path, "eve", authority, "eve.example.org", common_name="ann")
    assert served(server, files.ca, ann)
    with client_of(server, files.ca, ann) as client:
        list(client.generate("It"))
    with client_of(server, files.ca, bob) as client:
        with pytest.raises(PermissionDenied, match=r"Generate needs the right generate.*'bob'"):
            list(client.generate("It"))
    with client_of(server, files.ca, eve) as client:
        with pytest.raises(Unauthenticated):
            client.score("It")
    with client_of(server, files.ca, eve, token=TOKENS["bob"]) as client:
        assert client.score("It").position == 1
    with client_of(server, files.ca, ann, token="wrong") as client:
        with pytest.raises(Unauthenticated):
            client.score("It")


class TestReload:
    def test_a_stream_goes_on_and_new_connections_get_the_new_certificate(
        self, make_server, files, other_authority, tmp_path
    ):
        server = make_server(**server_options(files))
        old_ca = tmp_path / "old.pem"
        old_ca.write_bytes(files.ca.read_bytes())
        pieces = queue.Queue()
        with client_of(server, old_ca) as client:
            pieces.put("It was ")
            scores = client.score_stream(iter(pieces.get, None))
            assert next(scores).committed_position > 0
            issue(tmp_path, "server", other_authority, HERE)
            server.run(reloaded(server))
            assert certificate_of(server) == certificate_in(files)
            assert "CERTIFICATE_VERIFY_FAILED" in refused(server, old_ca)
            assert served(server, files.ca)
            # The connection that was there is as it was.
            pieces.put("the best ")
            assert next(scores).committed_position > 1
            pieces.put(None)
            assert list(scores)[-1].final
            assert client.score("It").position == 1

    def test_a_change_of_the_files_is_found(self, make_server, files, authority, tmp_path):
        server = make_server(**server_options(files))
        before = certificate_of(server)
        issue(tmp_path, "server", authority, HERE)
        wait_until(lambda: reloads(server, "certificates", "done") == 1)
        assert certificate_of(server) == certificate_in(files) != before

    def test_another_authority_of_clients(
        self, make_server, files, authority, other_authority, tmp_path
    ):
        clients = tmp_path / "clients.pem"
        clients.write_bytes(authority.cert_pem.bytes())
        server = make_server(**server_options(files, tls_client_ca=clients))
        ann = issue(tmp_path, "ann", authority, "ann.example.org")
        bob = issue(tmp_path, "bob", other_authority, "bob.example.org")
        assert served(server, files.ca, ann)
        assert refused(server, files.ca, bob)
        clients.write_bytes(other_authority.cert_pem.bytes())
        server.run(reloaded(server))
        assert served(server, files.ca, bob)
        assert refused(server, files.ca, ann)

    @pytest.mark.parametrize("what", ["no PEM", "another key", "expired", "missing"])
    def test_a_broken_one_changes_nothing(
        self, make_server, files, authority, tmp_path, what, caplog
    ):
        server = make_server(**server_options(files))
        before = certificate_of(server)
        if what == "no PEM":
            files.cert.write_text("nothing")
        elif what == "another key":
            files.key.write_bytes(authority.issue_cert(HERE).private_key_pem.bytes())
        elif what == "expired":
            times = {"not_before": LONG_AGO, "not_after": YESTERDAY}
            issue(tmp_path, "server", authority, HERE, **times)
        else:
            files.key.unlink()
        server.run(reloaded(server))
        assert certificate_of(server) == before
        assert served(server, files.ca)
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        assert record.getMessage().startswith("certificates stay as they were: tls_")
        assert reloads(server, "certificates", "failed") == 1
        assert reloads(server, "certificates", "done") == 0

    def test_who_may_call_changes_as_well(self, make_server, tmp_path, caplog):
        path = write(tmp_path / "auth.yaml", people())
        server = make_server(auth_file=path, open_metrics=True)

        def may_score(name):
            try:
                with Client(server.address, token=TOKENS[name]) as client:
                    return client.score("It").position == 1
            except (Unauthenticated, PermissionDenied) as error:
                return error.code.name

        assert [may_score(name) for name in ("ann", "bob", "mon")] == [
            True,
            True,
            "PERMISSION_DENIED",
        ]
        write(path, people(bob={"tokens": []}, mon={"rights": ["score"]}))
        wait_until(lambda: reloads(server, "principals", "done") == 1)
        assert [may_score(name) for name in ("ann", "bob", "mon")] == [
            True,
            "UNAUTHENTICATED",
            True,
        ]
        path.write_text("nobody")
        server.run(reloaded(server))
        assert [may_score(name) for name in ("ann", "bob", "mon")] == [
            True,
            "UNAUTHENTICATED",
            True,
        ]
        assert reloads(server, "principals", "failed") >= 1
        assert "principals stay as they were" in caplog.text


async def reloaded(server):
    server.server.reload()


def reloads(server, what, outcome):
    name = f'deqlm_reloads_total{{outcome="{outcome}",what="{what}"}}'
    return metrics(server).get(name, 0.0)


def metrics(server):
    context = None
    scheme = "http"
    if server.server.config.tls_cert is not None:
        scheme, context = "https", ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"{scheme}://{server.metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        lines = answer.read().decode().splitlines()
    return {n: float(v) for n, _, v in (line.rpartition(" ") for line in lines if line[0] != "#")}


def wait_until(holds, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.05)


class TestMetrics:
    def test_they_are_encrypted_and_tell_when_the_certificate_ends(
        self, make_server, tmp_path, authority
    ):
        ends = datetime.datetime(2040, 1, 2, tzinfo=datetime.UTC)
        files = issue(tmp_path, "server", authority, HERE, not_after=ends)
        server = make_server(**server_options(files))
        found = metrics(server)
        assert found["deqlm_certificate_expiry_timestamp_seconds"] == ends.timestamp()
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=20)
        context = ssl.create_default_context(cafile=files.ca)
        url = f"https://{server.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=20, context=context) as answer:
            assert answer.status == 200
        issue(tmp_path, "server", authority, HERE)
        server.run(reloaded(server))
        fresh = ssl.get_server_certificate((HERE, server.server.metrics_port), timeout=20)
        assert fresh == certificate_in(files)

    def test_where_certificates_alone_tell_who_calls(self, make_server, files, authority, tmp_path):
        server = make_server(**server_options(files, tls_client_ca=files.ca))
        url = f"https://{server.metrics_address}/metrics"
        context = ssl.create_default_context(cafile=files.ca)
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=20, context=context).read()
        ann = issue(tmp_path, "ann", authority, "ann.example.org")
        context.load_cert_chain(ann.cert, ann.key)
        with urllib.request.urlopen(url, timeout=20, context=context) as answer:
            assert answer.status == 200


class TestStart:
    """What cannot be used is told before anything listens."""

    @pytest.mark.parametrize(
        ("names", "problem"),
        [
            ({"tls_cert"}, "tls_key must be set where tls_cert is"),
            ({"tls_key"}, "tls_cert must be set where tls_key is"),
            ({"tls_client_ca"}, "tls_cert must be set where tls_client_ca is"),
        ],
    )
    def test_options_that_belong_together(self, tmp_path, names, problem):
        with pytest.raises(ServerConfigError, match=problem):
            ServerConfig(**{name: tmp_path for name in names})

    def test_a_certificate_of_an_impossible_version(self, files, tmp_path):
        """Found by fuzzing: what the reader raises then is no ValueError."""
        der = ssl.PEM_cert_to_DER_cert(files.cert.read_text().partition("\n\n")[0])
        version_3, version_35 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22"
        assert version_3 in der
        damaged = tmp_path / "damaged.pem"
        damaged.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version_3, version_35, 1)))
        options = ServerConfig(**server_options(files) | {"tls_cert": damaged})
        with pytest.raises(TlsError, match=r"tls_cert must be certificates in PEM, got .*damaged"):
            read_certificates(options)

    def test_files_that_cannot_be_used(self, files, tmp_path, authority):
        junk = tmp_path / "junk.pem"
        junk.write_text("nothing")
        locked = tmp_path / "locked.pem"
        locked.write_bytes(with_password(files.key.read_bytes()))
        other = issue(tmp_path, "other", authority, HERE)
        soon = issue(
            tmp_path,
            "soon",
            authority,
            HERE,
            not_before=datetime.datetime(2090, 1, 1),
            not_after=datetime.datetime(2091, 1, 1),
        )
        for changes, problem in (
            ({"tls_cert": junk}, "tls_cert must be certificates in PEM, got .*junk"),
            ({"tls_cert": tmp_path / "no"}, "tls_cert cannot be read from .*no: No such file"),
            ({"tls_key": junk}, "tls_key must be a private key in PEM, got .*junk"),
            ({"tls_key": locked}, "tls_key must be without a password"),
            ({"tls_key": other.key}, "tls_key must be that of the first certificate of tls_cert"),
            ({"tls_client_ca": junk}, "tls_client_ca must be certificates in PEM"),
            (server_options(soon), "tls_cert must be valid now, .* is from 2090-01-01"),
        ):
            with pytest.raises(TlsError, match=problem):
                Server(ServerConfig(**{**server_options(files), **changes}))

    def test_beyond_this_machine_with_certificates_and_people(self, files, tmp_path):
        path = write(tmp_path / "auth.yaml", people())
        ServerConfig(host="0.0.0.0", **server_options(files, auth_file=path)).check_exposure()
        ServerConfig(
            host="0.0.0.0", **server_options(files, tls_client_ca=files.ca)
        ).check_exposure()
        with pytest.raises(ServerConfigError, match=r"give --auth-file .* or --insecure"):
            ServerConfig(host="0.0.0.0", **server_options(files)).check_exposure()
        with pytest.raises(ServerConfigError, match=r"give --tls-cert and --tls-key, or --insec"):
            ServerConfig(host="0.0.0.0", auth_file=path).check_exposure()
        assert read_certificates(ServerConfig(**server_options(files))).expiry > time.time()


def with_password(key):
    from cryptography.hazmat.primitives import serialization as forms

    return forms.load_pem_private_key(key, None).private_bytes(
        forms.Encoding.PEM,
        forms.PrivateFormat.PKCS8,
        forms.BestAvailableEncryption(b"password"),
    )
