"""How the commands reach a server: their flags, and the client made of them."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from cli.parser import positive_seconds
from client._channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S
from client.commands._environment import (
    ADDRESS_VARIABLE,
    CA_VARIABLE,
    TOKEN_VARIABLE,
    UsageError,
    add_credential_flags,
    read_token,
)
from client.credentials import Tls
from client.errors import InvalidArgument
from client.sync import Client

__all__ = [
    "ADDRESS_VARIABLE",
    "CA_VARIABLE",
    "TOKEN_VARIABLE",
    "UsageError",
    "add_connection_flags",
    "connect",
    "is_encrypted",
    "read_token",
]


def add_connection_flags(group: Any) -> None:
    """Add the flags behind `connect`."""
    group.add_argument(
        "--address",
        default=os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"server (default: {DEFAULT_ADDRESS}; environment: {ADDRESS_VARIABLE})",
    )
    group.add_argument(
        "--timeout-s",
        type=positive_seconds,
        metavar="S",
        help=f"deadline of each call (default: {DEFAULT_TIMEOUT_S:g}; none for streams)",
    )
    group.add_argument("--owner", default="", help="owner of the sessions (default: nobody)")
    add_credential_flags(group, authorities="those that gRPC comes with")
    group.add_argument(
        "--send-token-unencrypted",
        action="store_true",
        help="send the token even where anybody on the way to the server can read it",
    )


def connect(args: argparse.Namespace) -> Client:
    """A client as the flags say. Raises UsageError."""
    try:
        return Client(
            args.address,
            timeout_s=DEFAULT_TIMEOUT_S if args.timeout_s is None else args.timeout_s,
            stream_timeout_s=args.timeout_s,
            owner=args.owner,
            token=read_token(args.token_file),
            tls=_tls(args),
            send_token_unencrypted=args.send_token_unencrypted,
        )
    except InvalidArgument as error:
        field = error.violations[0].field
        raise UsageError(error.message + _HINTS.get(field, "")) from None


def is_encrypted(args: argparse.Namespace) -> bool:
    """Whether the flags ask for an encrypted connection."""
    return _tls(args) is not None


_HINTS: Final = {
    "token": "; give --tls or --tls-ca FILE, or --send-token-unencrypted where the way is safe"
}


def _tls(args: argparse.Namespace) -> Tls | None:
    given = Tls(ca=args.tls_ca, cert=args.tls_cert, key=args.tls_key)
    return given if args.tls or given != Tls() else None
