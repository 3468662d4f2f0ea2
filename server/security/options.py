"""Options of a server that say who may reach it, and with how much."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityOptions:
    """Who may reach a server, and with how much.

    Attributes:
        insecure: whether it may listen beyond this machine without TLS, or without knowing its callers.
        tls_cert: PEM file with the server's certificate and those between it and the authority; none for no TLS.
        tls_key: PEM file with its private key, without a password.
        tls_client_ca: PEM file with the authorities whose certificates every client must have one of; none asks for none.
        auth_file: YAML file with those who may call, their tokens, identities, rights and quotas (deqlm token create makes tokens); none lets everybody call.
        open_health: whether health is told to callers that are not known.
        open_metrics: whether metrics are told to callers that are not known.
        audit_log: file to which a line is appended for each act of an administrator; none puts them into the log.
        log_messages: whether the log has what exceptions say, which may hold parts of users' text.
        max_metadata_bytes: most bytes of metadata with one call.
        max_streams: most calls that one connection may have running.
        max_connections: most connections for calls; further ones are closed at once.
        max_idle_s: seconds without a call after which a connection is closed.
        handshake_s: seconds that a client gets to set up a connection.
        min_ping_s: least seconds between a connection's pings; one that pings faster is closed.
    """  # noqa: E501 - the lines are the help texts

    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    auth_file: Path | None = None
    open_health: bool = False
    open_metrics: bool = False
    audit_log: Path | None = None
    log_messages: bool = False
    max_metadata_bytes: int = 16_384
    max_streams: int = 256
    max_connections: int = 1024
    max_idle_s: float = 600.0
    handshake_s: float = 20.0
    min_ping_s: float = 10.0
