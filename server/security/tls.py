"""Certificates of the server: read, checked, and exchanged while it runs."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from server.security.errors import SecurityFileError
from server.security.options import SecurityOptions

_CURVES = ("secp256r1", "secp384r1")
_LEAST_RSA_BITS = 2048


class TlsError(SecurityFileError):
    """A certificate or key cannot be used; the message names the option and the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What a connection is set up with.

    Attributes:
        chain: the server's certificate and those between it and the authority, PEM.
        key: its private key, PEM.
        client_ca: authorities of which clients must have a certificate; None asks for none.
        expiry: seconds of Unix time at which the first certificate of the chain ends.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expiry: float


def read_certificates(options: SecurityOptions) -> Certificates:
    """The certificates that the options name, checked as clients will check them.

    Raises:
        TlsError: a file is missing, is not what it should be, or its time is not now; certificate
            and key do not belong together.
    """
    assert options.tls_cert is not None and options.tls_key is not None
    chain, key = _read("tls_cert", options.tls_cert), _read("tls_key", options.tls_key)
    certificates = _certificates("tls_cert", options.tls_cert, chain)
    _check_time(options.tls_cert, certificates[0])
    _check_kind(options.tls_cert, certificates[0])
    _check_key(options.tls_key, key, certificates[0])
    client_ca = None
    if options.tls_client_ca is not None:
        client_ca = _read("tls_client_ca", options.tls_client_ca)
        _certificates("tls_client_ca", options.tls_client_ca, client_ca)
    expiry = min(one.not_valid_after_utc for one in certificates).timestamp()
    return Certificates(chain=chain, key=key, client_ca=client_ca, expiry=expiry)


class LiveCertificates:
    """The certificates in force: what connects from now on gets them."""

    def __init__(self, options: SecurityOptions) -> None:
        """Read them. Raises TlsError."""
        self._options = options
        self.reload()

    @property
    def files(self) -> tuple[Path, ...]:
        """Where they come from."""
        options = self._options
        named = (options.tls_cert, options.tls_key, options.tls_client_ca)
        return tuple(path for path in named if path is not None)

    @property
    def expiry(self) -> float:
        """Seconds of Unix time."""
        return self._current.expiry

    def reload(self) -> None:
        """Read them anew; those in force stay if there is something wrong. Raises TlsError."""
        fresh = read_certificates(self._options)
        context = _http_context(self._options)
        self._current, self._context = fresh, context

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks for the certificates in force at every new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._configuration,
            require_client_authentication=self._options.tls_client_ca is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """For the next connection of the metrics' port."""
        return self._context

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        current = self._current
        return grpc.ssl_server_certificate_configuration(
            [(current.key, current.chain)], root_certificates=current.client_ca
        )


def _http_context(options: SecurityOptions) -> ssl.SSLContext:
    """Where nothing but certificates tells who calls, they do so for metrics as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert options.tls_cert is not None and options.tls_key is not None
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key, password="")
        if options.tls_client_ca and options.auth_file is None and not options.open_metrics:
            context.load_verify_locations(cafile=options.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # SSLError is one, too: of a file exchanged since it was read
        raise TlsError(f"tls_cert cannot be used: {error.strerror}") from None
    return context


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{name} cannot be read from {path}: {error.strerror}") from None


def _certificates(name: str, path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):  # which is no ValueError
        raise TlsError(f"{name} must be certificates in PEM, got {path}") from None


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    now = time.time()
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end.timestamp():
        raise TlsError(f"tls_cert must not have expired, {path} has on {end:%Y-%m-%d %H:%M:%S} UTC")
    if now < begin.timestamp():
        raise TlsError(f"tls_cert must be valid now, {path} is from {begin:%Y-%m-%d %H:%M:%S} UTC")


def _check_kind(path: Path, certificate: x509.Certificate) -> None:
    """With other keys gRPC loads the certificate and then fails every handshake."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    is_rsa = isinstance(key, RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS
    is_curve = isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES
    if not (is_rsa or is_curve):
        raise TlsError(
            "tls_cert must have a key of RSA with at least 2048 bits or of the curve P-256 or "
            f"P-384, {path} has another"
        )


def _check_key(path: Path, data: bytes, certificate: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise TlsError(f"tls_key must be without a password, {path} has one") from None
    except Exception:  # ValueError and others; what it says may hold parts of the key
        raise TlsError(f"tls_key must be a private key in PEM, got {path}") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise TlsError(f"tls_key must be that of the first certificate of tls_cert, {path} is not")
