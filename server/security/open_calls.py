"""Calls that run, looked at again and again: a token that is taken away ends what it began."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from server.security.access import Access, Shown, check_rights, kind_of
from server.security.counts import SecurityCounts
from server.security.errors import SecurityError, Unauthenticated
from server.security.principals import Principal
from server.security.rights import Right

LOOK_S: Final = 1.0
"""Seconds between two looks."""

_Known = dict[tuple[str | None, tuple[str, ...], float], Principal | None]
"""Who has shown a token and a certificate; None for nobody."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Open:
    """A call that runs.

    Attributes:
        shown: with what its caller came.
        principal: who that was then.
        needed: rights of which it must have one; none where being known is enough.
        what: the method, for messages.
        end: ends it.
        error: why it was ended.
    """

    shown: Shown
    principal: Principal
    needed: frozenset[Right]
    what: str
    end: Callable[[], object]
    error: SecurityError | None = None


class OpenCalls:
    """Those that run, of callers that are asked who they are."""

    def __init__(self, access: Access, counts: SecurityCounts) -> None:
        """Look at them by what ``access`` says now."""
        self._access, self._counts = access, counts
        self._open: set[_Open] = set()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def watched(
        self, shown: Shown, principal: Principal, needed: frozenset[Right], what: str
    ) -> AsyncIterator[None]:
        """A call, for as long as it runs.

        Raises:
            Unauthenticated, PermissionMissing: it was ended as its caller would not be let in now.
        """
        if not self._access.is_asked:
            yield
            return
        scope = asyncio.timeout(None)

        def end() -> None:
            scope.reschedule(asyncio.get_running_loop().time())

        with self.looked_at(shown, principal, needed, what, end) as one:
            try:
                async with scope:
                    yield
            except TimeoutError:
                if one.error is None:
                    raise
                raise one.error from None

    @contextmanager
    def looked_at(
        self,
        shown: Shown,
        principal: Principal,
        needed: frozenset[Right],
        what: str,
        end: Callable[[], object],
    ) -> Iterator[_Open]:
        """Work for a caller, for as long as it lasts: ``end`` is to end it, and called once."""
        one = _Open(shown, principal, needed, what, end)
        if self._access.is_asked:
            self._open.add(one)
        try:
            yield one
        finally:
            self._open.discard(one)

    async def run(self) -> None:
        """Look for ever, where anybody is asked."""
        while self._access.is_asked:
            await asyncio.sleep(LOOK_S)
            try:
                self.look()
            except Exception:  # whatever it is, the next look must come
                _log.exception("open calls could not be looked at")

    def look(self) -> None:
        """End the calls whose callers would not be let in now."""
        known: _Known = {}
        for one in list(self._open):
            if one.error is None and (error := self._lost(one, known)) is not None:
                one.error = error
                one.end()
                self._counts.turned_away(kind_of(error))

    def _lost(self, one: _Open, known: _Known) -> SecurityError | None:
        """Why a call may not go on; callers are looked up once each."""
        try:
            key = (one.shown.token, one.shown.names, one.shown.expiry)
            if key not in known:
                known[key] = None
                known[key] = self._access.who(one.shown)
            principal = known[key]
            if principal is None or principal.name != one.principal.name:
                raise Unauthenticated("unknown_token")
            if one.needed:
                check_rights(principal, one.needed, one.what)
        except SecurityError as error:
            return error
        return None
