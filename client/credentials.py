"""How a client shows who it is, and how it knows that the server is the right one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from client._addresses import is_here
from client.errors import ErrorDetails, FieldViolation, InvalidArgument

TOKEN_KEY = "authorization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of an encrypted connection, as PEM files."""

    ca: Path | str | None = None
    """Authorities of which the server must have a certificate; None for those gRPC comes with."""
    cert: Path | str | None = None
    """The client's own certificate and those between it and its authority, if it needs one."""
    key: Path | str | None = None
    """Its private key, without a password."""


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """What gRPC needs for the connection.

    Raises:
        InvalidArgument: a file is missing or is not what it should be.
    """
    if (tls.cert is None) != (tls.key is None):
        missing = "key" if tls.key is None else "cert"
        raise _invalid(f"tls.{missing}", "must be set, as certificate and key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca = None if tls.ca is None else _read("tls.ca", tls.ca)
    try:
        if tls.ca is not None:
            context.load_verify_locations(cafile=tls.ca)
    except ssl.SSLError:
        raise _invalid("tls.ca", f"must be certificates in PEM, got {tls.ca}") from None
    if tls.cert is None or tls.key is None:
        return grpc.ssl_channel_credentials(root_certificates=ca)
    cert, key = _read("tls.cert", tls.cert), _read("tls.key", tls.key)
    try:
        # A password of no characters, as OpenSSL would ask the terminal for one.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError:
        bound = "must be a certificate in PEM and its key without a password"
        raise _invalid("tls.cert", f"{bound}, got {tls.cert} and {tls.key}") from None
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=cert
    )


def token_metadata(
    token: str | None, address: str, *, is_encrypted: bool, send_unencrypted: bool
) -> tuple[tuple[str, str], ...]:
    """Metadata that carries a token; none without one.

    Raises:
        InvalidArgument: it is no token, or everybody on the way to the server could read it.
    """
    if token is None:
        return ()
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise _invalid("token", "must be one word of printable ASCII")
    if not (is_encrypted or send_unencrypted or is_here(address)):
        raise _invalid(
            "token", f"must not go to {address} unencrypted, where anybody on the way can read it"
        )
    return ((TOKEN_KEY, f"Bearer {token}"),)


def _read(field: str, path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _invalid(field, f"cannot be read from {path}: {error.strerror}") from None


def _invalid(field: str, problem: str) -> InvalidArgument:
    violation = FieldViolation(field=field, description=problem)
    return InvalidArgument(f"{field} {problem}", details=ErrorDetails(violations=(violation,)))
