"""How commands know who calls and whom they trust, for those as well that need no gRPC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

ADDRESS_VARIABLE: Final = "DEQLM_ADDRESS"
TOKEN_VARIABLE: Final = "DEQLM_TOKEN"
CA_VARIABLE: Final = "DEQLM_TLS_CA"
METRICS_VARIABLE: Final = "DEQLM_METRICS"


class UsageError(Exception):
    """The command line cannot be carried out; the message says what to change."""


def read_token(path: str | None) -> str | None:
    """That of the file, else that of the environment, else none; never told in any message.

    Raises:
        UsageError: the file cannot be read, or holds more than a token.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"token_file cannot be read from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"token_file {path} must hold a token alone") from None
    if len(token.split()) != 1:
        raise UsageError(
            f"token_file {path} must hold a token alone, got {len(token.split())} words"
        )
    return token


def add_credential_flags(group: Any, *, authorities: str) -> None:
    """Add ``--token-file`` and the flags of TLS.

    Args:
        group: a parser, or a group of one.
        authorities: which are trusted where ``--tls-ca`` names none, for its help.
    """
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with the token that shows who calls (environment: {TOKEN_VARIABLE}, the token)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt; the other TLS flags do so too")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        default=os.environ.get(CA_VARIABLE) or None,
        help="authorities that the server's certificate must be of, in PEM (default: "
        f"{authorities}; environment: {CA_VARIABLE})",
    )
    group.add_argument("--tls-cert", metavar="FILE", help="the client's own certificate, in PEM")
    group.add_argument("--tls-key", metavar="FILE", help="its private key")
