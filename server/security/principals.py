"""Who may call: principals, and what shows that a caller is one of them."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from server.security.errors import Unauthenticated
from server.security.rights import Right


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How much a principal may use; None for as much as there is.

    Attributes:
        requests_per_minute: calls begun, on average; as many may come at once.
        tokens_per_minute: tokens scored, read and generated, on average; as many may come at once.
        max_concurrent: calls that run at once.
        max_sessions: sessions.
        max_session_bytes: memory of the sessions, each counted with all that it may take.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_sessions: int | None = None
    max_session_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who may call.

    Attributes:
        name: the owner of its sessions; empty for everybody where nobody is asked.
        rights: what it may do.
        quotas: how much of it.
    """

    name: str
    rights: frozenset[Right]
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """A token that is known by its hash alone.

    Attributes:
        digest: SHA-256 of its text.
        principal: whose it is.
        expires: seconds of Unix time from which on it is worth nothing; None for never.
    """

    digest: bytes
    principal: Principal
    expires: float | None = None


def digest_of(token: str) -> bytes:
    """What is kept of a token: it has 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).digest()


class Principals:
    """All who may call, as one file says; never changed."""

    def __init__(
        self, tokens: Sequence[TokenEntry] = (), identities: Mapping[str, Principal] | None = None
    ) -> None:
        """Take what the file says.

        Args:
            tokens: those there are.
            identities: principals by what their certificates say, such as ``dns:ann.example.org``.
        """
        self._tokens = tuple(tokens)
        self._identities = dict(identities or {})

    @property
    def names(self) -> frozenset[str]:
        """Of all who have a token or an identity."""
        own = {entry.principal.name for entry in self._tokens}
        return frozenset(own | {principal.name for principal in self._identities.values()})

    @property
    def has_identities(self) -> bool:
        """Whether a certificate may show who calls."""
        return bool(self._identities)

    def by_token(self, token: str, *, now: float) -> Principal:
        """Whose token it is, in a time that does not depend on how much of it is right.

        Raises:
            Unauthenticated: nobody's, or it has expired.
        """
        digest = digest_of(token)
        found = None
        for entry in self._tokens:  # all of them, whichever it is
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            raise Unauthenticated("unknown_token")
        if found.expires is not None and now >= found.expires:
            raise Unauthenticated("expired_token")
        return found.principal

    def by_identity(self, names: Iterable[str]) -> Principal:
        """Whom a certificate shows. Raises Unauthenticated."""
        found = [self._identities[name] for name in names if name in self._identities]
        if not found:
            raise Unauthenticated("unknown_certificate")
        if any(other is not found[0] for other in found):
            raise Unauthenticated("ambiguous_certificate")
        return found[0]
