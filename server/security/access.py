"""The one place that decides who a caller is, and whether it may call a method."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509

from server.security.auth_file import read_auth_file
from server.security.errors import PermissionMissing, SecurityError, Unauthenticated
from server.security.exposure import is_loopback
from server.security.options import SecurityOptions
from server.security.principals import Principal, Principals
from server.security.rights import ADMIN, RIGHTS, Right

_log = logging.getLogger(__name__)

TOKEN_KEY = "authorization"
_SCHEME = "bearer"

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC tells of the connection's other end."""

# In order: what names a certificate's holder best.
_IDENTITIES = (
    ("peer_uri", "uri"),
    ("peer_dns", "dns"),
    ("peer_email", "email"),
    ("peer_ip", "ip"),
    ("x509_common_name", "cn"),
)
_CERTIFICATE = "x509_pem_cert"
_HERE = Principal(name="", rights=frozenset(RIGHTS))
"""Everybody on this machine, where nobody is asked."""
_ELSEWHERE = Principal(name="", rights=frozenset(RIGHTS) - ADMIN)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a caller has shown of itself.

    Attributes:
        token: that came with the call.
        names: what the connection's certificate says.
        peer: its address, as gRPC has it; empty where it does not matter.
        expiry: seconds of Unix time at which that certificate ends; infinite without one.
    """

    token: str | None = field(repr=False)
    names: tuple[str, ...] = ()
    peer: str = ""
    expiry: float = math.inf


class Access:
    """Who may do what; where the configuration names nobody, everybody may all but administer."""

    def __init__(self, options: SecurityOptions) -> None:
        """Read who may call.

        Raises:
            AuthFileError: the file is not as it must be.
        """
        self._options = options
        self._principals: Principals | None = None
        self.reload()

    @property
    def is_asked(self) -> bool:
        """Whether callers must say who they are."""
        return self._options.auth_file is not None or self._options.tls_client_ca is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is read from."""
        return () if self._options.auth_file is None else (self._options.auth_file,)

    def reload(self) -> None:
        """Read anew who may call; those known stay if that cannot be. Raises AuthFileError."""
        if self._options.auth_file is not None:
            self._principals = read_auth_file(self._options.auth_file)
            _log.info("principals that may call: %d", len(self._principals.names))

    def identify(
        self, metadata: Iterable[tuple[str, str | bytes]], auth: AuthContext, peer: str
    ) -> Principal:
        """Who a caller is: ``who`` of what it has shown. Raises Unauthenticated."""
        return self.who(shown(metadata, auth, peer))

    def who(self, shown: "Shown") -> Principal:
        """Who has shown that; the answer is another one when the file is.

        Raises:
            Unauthenticated: nobody that is known.
        """
        if not self.is_asked:
            return _HERE if is_near(shown.peer) else _ELSEWHERE
        if time.time() >= shown.expiry:  # its connection would not be set up now
            raise Unauthenticated("expired_certificate")
        if self._principals is None:  # certificates alone show who calls
            if not shown.names:
                raise Unauthenticated("unknown_certificate")
            return Principal(name=shown.names[0], rights=_ELSEWHERE.rights)
        if shown.token is not None:
            return self._principals.by_token(shown.token, now=time.time())
        if not shown.names:
            raise Unauthenticated("missing")
        return self._principals.by_identity(shown.names)

    def may_be_known(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Turn away by metadata alone whom no certificate can help. Raises Unauthenticated."""
        if self._principals is None:
            return
        token = token_in(metadata)
        if token is not None:
            self._principals.by_token(token, now=time.time())
        elif not self._principals.has_identities:
            raise Unauthenticated("missing")


def shown(metadata: Iterable[tuple[str, str | bytes]], auth: AuthContext, peer: str) -> Shown:
    """What a call shows of its caller.

    Args:
        metadata: of the call.
        auth: of its connection.
        peer: its address, as gRPC has it.

    Raises:
        Unauthenticated: it is not understood.
    """
    pem = next(iter(auth.get(_CERTIFICATE, ())), b"")
    return Shown(token_in(metadata), tuple(identities(auth)), peer, _expiry(pem))


def check_rights(principal: Principal, needed: frozenset[Right], what: str) -> None:
    """Raises PermissionMissing unless the principal has one of the rights."""
    if needed & principal.rights:
        return
    rights = " or ".join(right for right in RIGHTS if right in needed)
    who = repr(principal.name) if principal.name else "a caller from another machine"
    raise PermissionMissing(f"{what} needs the right {rights}, which {who} does not have")


def check_owner(principal: Principal, owner: str) -> str:
    """The owner of the sessions of a call that names ``owner``. Raises PermissionMissing."""
    if not principal.name:
        return owner
    if owner and owner != principal.name:
        raise PermissionMissing(
            f"deqlm-owner must be absent or {principal.name!r}, which the caller is, as sessions "
            "belong to whoever makes them"
        )
    return principal.name


def token_in(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token of a call; None without one. Raises Unauthenticated for what is not understood."""
    values = [value for key, value in metadata if key == TOKEN_KEY]
    return token_of(values) if values else None


def token_of(values: list[str | bytes]) -> str:
    """The token that one header says. Raises Unauthenticated."""
    if len(values) != 1 or not isinstance(values[0], str):
        raise Unauthenticated("malformed")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != _SCHEME or not token.strip():
        raise Unauthenticated("malformed")
    return token.strip()


def identities(auth: AuthContext) -> list[str]:
    """What a verified certificate says its holder is, such as ``dns:ann.example.org``."""
    return [
        f"{kind}:{value.decode('utf-8', errors='replace')}"
        for name, kind in _IDENTITIES
        for value in auth.get(name, ())
    ]


@lru_cache(maxsize=4096)
def _expiry(pem: bytes) -> float:
    """Of a verified certificate, which is the same for all calls of a connection."""
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion):  # there is none, or gRPC alone understands it
        return math.inf


def is_near(peer: str) -> bool:
    """Whether a peer, as gRPC names it, is on this machine."""
    kind, _, address = peer.partition(":")
    if kind.startswith("unix"):
        return True
    return is_loopback(unquote(address.rpartition(":")[0]))


def kind_of(error: SecurityError) -> str:
    """Why a caller was turned away, for metrics."""
    return error.kind if isinstance(error, Unauthenticated) else "missing_right"
