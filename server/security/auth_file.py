"""The file that says who may call.

    principals:
      ann:
        rights: [score, generate]
        tokens:
          - {sha256: 1b4f…, expires: 2027-06-01}
        identities: ["dns:ann.example.org", "cn:Ann"]
        quotas: {requests_per_minute: 600, max_sessions: 20}

Messages about it name keys and bounds, and values only where nobody could have put a token.
"""

import dataclasses
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.yaml_file import load
from server.security.errors import SecurityFileError
from server.security.principals import Principal, Principals, Quotas, TokenEntry
from server.security.rights import RIGHTS, Right

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"(dns|uri|email|ip|cn):.+")
_QUOTAS = tuple(field.name for field in dataclasses.fields(Quotas))


class AuthFileError(SecurityFileError):
    """The file cannot be read or says something impossible; the message names file and key."""


def read_auth_file(path: Path) -> Principals:
    """Whom a file names. Raises AuthFileError."""
    try:
        return _principals(load(path, str(path)))
    except AuthFileError as error:
        raise AuthFileError(f"{error} in {path}") from None
    except ValueError as error:
        # What else it holds is not told: it may be a token, named in place of the file.
        raise AuthFileError(f"auth_file: {str(error).partition(', got ')[0]}") from None


def _principals(content: Mapping[str, Any]) -> Principals:
    _only(content, ("principals",), "")
    entries = _mapping(content.get("principals"), "principals")
    if not entries:
        raise AuthFileError("principals must name somebody, got nobody")
    tokens: dict[bytes, TokenEntry] = {}
    identities: dict[str, Principal] = {}
    for name, entry in entries.items():
        key = f"principals.{name}"
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise AuthFileError(
                f"{key} must be named by 1 to 64 letters, digits and . _ @ -, a letter or digit "
                "first"
            )
        values = _mapping(entry, key)
        _only(values, ("rights", "tokens", "identities", "quotas"), f"{key}.")
        principal = Principal(
            name=name,
            rights=_rights(values.get("rights"), f"{key}.rights"),
            quotas=_quotas(values.get("quotas"), f"{key}.quotas"),
        )
        _add_tokens(tokens, values.get("tokens"), principal, f"{key}.tokens")
        _add_identities(identities, values.get("identities"), principal, f"{key}.identities")
    return Principals(tuple(tokens.values()), identities)


def _rights(value: object, key: str) -> frozenset[Right]:
    given = _list(value, key)
    known = frozenset(right for right in RIGHTS if right in given)
    if not given or len(known) != len(given):
        raise AuthFileError(f"{key} must be a list of {', '.join(RIGHTS)}, got {value!r}")
    return known


def _quotas(value: object, key: str) -> Quotas:
    values = _mapping({} if value is None else value, key)
    _only(values, _QUOTAS, f"{key}.")
    for name, most in values.items():
        if type(most) is not int or most < 1:
            raise AuthFileError(f"{key}.{name} must be a whole number of at least 1, got {most!r}")
    return Quotas(**values)


def _add_tokens(
    tokens: dict[bytes, TokenEntry], value: object, principal: Principal, key: str
) -> None:
    for index, item in enumerate(_list(value, key)):
        at = f"{key}[{index}]"
        values = _mapping(item, at)
        _only(values, ("sha256", "expires", "note"), f"{at}.")
        text = values.get("sha256")
        if not (isinstance(text, str) and _DIGEST.fullmatch(text)):
            raise AuthFileError(
                f"{at}.sha256 must be 64 hexadecimal digits in quotes, as deqlm token create "
                "prints them"
            )
        entry = TokenEntry(
            digest=bytes.fromhex(text),
            principal=principal,
            expires=_instant(values.get("expires"), f"{at}.expires"),
        )
        if entry.digest in tokens:
            raise AuthFileError(f"{at}.sha256 must be there once, it is another token's as well")
        tokens[entry.digest] = entry


def _add_identities(
    identities: dict[str, Principal], value: object, principal: Principal, key: str
) -> None:
    for index, name in enumerate(_list(value, key)):
        if not (isinstance(name, str) and _IDENTITY.fullmatch(name)):
            raise AuthFileError(
                f"{key}[{index}] must be dns:NAME, uri:URI, email:ADDRESS, ip:ADDRESS or cn:NAME, "
                f"got {name!r}"
            )
        if name in identities:
            raise AuthFileError(f"{key}[{index}] must be there once, got {name!r} again")
        identities[name] = principal


def _instant(value: object, key: str) -> float | None:
    """Unix time of a date or a time; UTC where it does not say."""
    if value is None:
        return None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if not isinstance(value, datetime.datetime):
        raise AuthFileError(f"{key} must be a date or a time, such as 2027-06-01T12:00:00Z")
    return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AuthFileError(f"{key} must hold keys and values")
    return value


def _list(value: object, key: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise AuthFileError(f"{key} must be a list")
    return value


def _only(values: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in values:
        if key not in known:
            raise AuthFileError(f"{prefix}{key} must be one of {', '.join(known)}")
