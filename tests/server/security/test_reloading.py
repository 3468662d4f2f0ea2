"""Files that are read anew, whatever becomes of them."""

import datetime
import os

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client import CollectorRegistry

from server.security.audit import Audit
from server.security.counts import SecurityCounts
from server.security.options import SecurityOptions
from server.security.reloading import Reloader
from server.security.tls import LiveCertificates, TlsError
from tests.server.security.certificates import Files, issue, server_options

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}
TAKEN = ("P-256", "P-384", "RSA-2048")


def sign_itself(files: Files, key) -> None:
    """A certificate that its own key signs."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
    )
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.key.write_bytes(key.private_bytes(*form))
    files.cert.write_bytes(made.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("kind", KEYS)
def test_kinds_of_keys(tmp_path, kind):
    files = issue(tmp_path, "server", trustme.CA(), "127.0.0.1")
    sign_itself(files, KEYS[kind]())
    options = SecurityOptions(**server_options(files))
    if kind in TAKEN:
        assert LiveCertificates(options).expiry > 0
    else:
        with pytest.raises(TlsError, match=r"tls_cert must have a key of RSA .* has another"):
            LiveCertificates(options)


class Odd:
    """A thing whose file is odd in a way that nobody thought of."""

    def __init__(self, path):
        self.files = (path,)
        self.read = 0

    def reload(self):
        self.read += 1
        if self.files[0].read_text() == "odd":
            raise RecursionError("nobody thought of this")


def test_what_nobody_thought_of_does_not_end_the_looking(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text("good")
    thing, registry = Odd(path), CollectorRegistry()
    reloader = Reloader([("things", thing)], SecurityCounts(registry), Audit(None))

    def outcome(word):
        labels = {"what": "things", "outcome": word}
        return registry.get_sample_value("deqlm_reloads_total", labels) or 0

    for content in ("odd", "good again"):
        path.write_text(content)
        reloader.look()
        reloader.look()
    assert (thing.read, outcome("failed"), outcome("done")) == (2, 1, 1)
    assert "things stay as they were" in caplog.text


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text("good")
    thing = Odd(path)
    reloader = Reloader([("things", thing)], SecurityCounts(CollectorRegistry()), Audit(None))
    path.unlink()
    os.mkfifo(path)
    reloader.look()
    reloader.look()
    reloader.reload()
    assert thing.read == 0
    assert f"things stay as they were: {path} must be a file to be read anew" in caplog.text
    path.unlink()
    path.write_text("good again")
    reloader.reload()
    assert thing.read == 1
