"""What the synchronous and the asyncio client share below the calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import grpc

from client.credentials import Tls, channel_credentials, token_metadata
from client.errors import ErrorDetails, FieldViolation, InvalidArgument

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
"""Where a server started without options listens."""

DEFAULT_TIMEOUT_S: Final = 60.0
"""Deadline of a call that is no stream."""

OWNER_KEY: Final = "deqlm-owner"
"""Metadata key that names the owner of sessions."""

READY_SERVICE: Final = "deqlm.v1.ScoringService"
"""Service whose health tells readiness; that of the empty name tells that the process lives."""

_PORT: Final = re.compile(r"^(?!unix).*:(\d+)$", re.ASCII | re.DOTALL)
_MAX_MESSAGE_BYTES: Final = 64 * 2**20

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # What is safe to repeat is decided call by call (client/_retry.py), not by DNS records.
    ("grpc.service_config_disable_resolution", 1),
    # A server that is just starting is found within a retry, not after gRPC's first second.
    ("grpc.initial_reconnect_backoff_ms", 100),
)
"""Options of every channel."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What every call of a client carries, and what its connection is made with."""

    metadata: tuple[tuple[str, str], ...] = field(repr=False)  # may hold a token
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, int], ...] = OPTIONS


def identity(
    address: str,
    *,
    owner: str,
    token: str | None,
    tls: Tls | None,
    credentials: grpc.ChannelCredentials | None,
    send_token_unencrypted: bool,
) -> Identity:
    """Checks what a client is given.

    Raises:
        InvalidArgument: it cannot be sent, should not be, or is not there.
    """
    if tls is not None:
        credentials = channel_credentials(tls)
    shown = token_metadata(
        token,
        address,
        is_encrypted=credentials is not None,
        send_unencrypted=send_token_unencrypted,
    )
    _check_address(address)
    options = OPTIONS
    if shown and credentials is None and not send_token_unencrypted:
        # gRPC would send even what is for this machine to the proxy that http_proxy names.
        options = (*OPTIONS, ("grpc.enable_http_proxy", 0))
    return Identity((*owner_metadata(owner), *shown), credentials, options)


def _check_address(address: str) -> None:
    """Raises InvalidArgument: gRPC would take a port modulo 65,536, and says little of nothing."""
    port = _PORT.search(address)
    if not address or (port is not None and not 0 < int(port[1]) < 1 << 16):
        bound = f"must be HOST:PORT with a port in [1, 65535], got {address!r}"
        violation = FieldViolation(field="address", description=bound)
        raise InvalidArgument(f"address {bound}", details=ErrorDetails(violations=(violation,)))


def owner_metadata(owner: str) -> tuple[tuple[str, str], ...]:
    """Metadata of every call of one owner.

    Raises:
        InvalidArgument: metadata cannot carry the name.
    """
    if not (owner.isascii() and owner.isprintable()):
        bound = f"must be printable ASCII, got {owner!r}"
        violation = FieldViolation(field="owner", description=bound)
        raise InvalidArgument(f"owner {bound}", details=ErrorDetails(violations=(violation,)))
    return ((OWNER_KEY, owner),) if owner else ()
