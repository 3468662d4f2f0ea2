"""What commands take from the environment, for those as well that need no gRPC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

ADDRESS_VARIABLE: Final = "DEQLM_ADDRESS"
TOKEN_VARIABLE: Final = "DEQLM_TOKEN"
CA_VARIABLE: Final = "DEQLM_TLS_CA"


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
