"""The id of a call: its client's, where that is fit for logs, else one that is made here."""

import re
import uuid
from collections.abc import Iterable

KEY = "x-request-id"
"""Metadata that brings a client's, and trailing metadata that takes it back."""

# What UUIDs, base 64, addresses and paths are made of: no white space, no quotes, no control.
_FIT = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


def read_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """A call's id. Of several, or of one that could forge a line of the log, none is taken."""
    given = [value for key, value in metadata if key == KEY]
    if len(given) == 1 and isinstance(given[0], str) and _FIT.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex
