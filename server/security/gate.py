"""Stands before every method of the port: asks who calls, and whether that may be."""

import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

import grpc

from server.call import Call
from server.errors import rule_for
from server.security.access import Access, Shown, check_owner, check_rights, kind_of, shown
from server.security.audit import Audit
from server.security.counts import SecurityCounts
from server.security.errors import SecurityError
from server.security.open_calls import OpenCalls
from server.security.options import SecurityOptions
from server.security.principals import Principal
from server.security.quotas import Meters
from server.security.rights import ADMIN, needed

_HEALTH = "/grpc.health.v1.Health/"

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Iterable[tuple[str, str | bytes]]
Greeted = Callable[[Call], AbstractAsyncContextManager[None]]
Refuse = Callable[[Call, Exception], Awaitable[None]]
"""Ends a call with an error's status."""


class Gate:
    """Lets callers through, or raises a SecurityError, which is counted."""

    def __init__(
        self, options: SecurityOptions, access: Access, counts: SecurityCounts, audit: Audit
    ) -> None:
        """Ask ``access`` who callers are, and write down what administrators do."""
        self._options, self._access, self._counts = options, access, counts
        self._audit = audit
        self._meters = Meters(time.monotonic)
        self.open_calls = OpenCalls(access, counts)
        """Those that run; to be looked at while the server does."""

    @property
    def metered(self) -> int:
        """Calls that count for somebody's quota."""
        return self._meters.running

    def look_at(self, metadata: Metadata) -> None:
        """Turn a caller away before its message is read: it may be long. Raises Unauthenticated."""
        try:
            self._access.may_be_known(metadata)
        except SecurityError as error:
            self._counts.turned_away(kind_of(error))
            raise

    @asynccontextmanager
    async def admitted(self, call: Call, path: str) -> AsyncIterator[None]:
        """A call to one of our methods, which belongs to its principal from now on.

        Raises:
            Unauthenticated, PermissionMissing: it may not be, or may not go on.
            QuotaExceeded: its principal may use no more.
        """
        rights = needed(path)
        with self._noted(call, path) if rights == ADMIN else nullcontext():
            found, principal = self._admit(call, path)
            with nullcontext() if call.meter is None else call.meter.running():
                seen = (found, principal, rights, call.method)
                call.watch = functools.partial(self.open_calls.looked_at, *seen)
                async with self.open_calls.watched(*seen):
                    yield

    @contextmanager
    def _noted(self, call: Call, path: str) -> Iterator[None]:
        """An act of an administrator, or of somebody who would be one."""
        result = "CANCELLED"
        try:
            yield
            result = "OK"
        except Exception as error:
            result = rule_for(error).code.name
            raise
        finally:
            self._audit.record(
                who=call.principal.name if call.principal else "",
                action=path.rpartition(".")[2],
                result=result,
                peer=call.context.peer(),
                request_id=call.request_id,
            )

    def _admit(self, call: Call, path: str) -> tuple[Shown, Principal]:
        try:
            found, principal = self._identify(call)
            call.principal = principal
            check_rights(principal, needed(path), call.method)
            call.owner = check_owner(principal, call.owner)
        except SecurityError as error:
            self._counts.turned_away(kind_of(error))
            raise
        if principal.name:
            call.meter = self._meters.of(principal)
            call.sharer = f"owner {principal.name}"
        return found, principal

    @asynccontextmanager
    async def greeted(self, call: Call) -> AsyncIterator[None]:
        """A call to somebody else's method. Raises Unauthenticated, also while it runs."""
        try:
            found, principal = self._identify(call)
        except SecurityError as error:
            self._counts.turned_away(kind_of(error))
            raise
        async with self.open_calls.watched(found, principal, frozenset(), call.method):
            yield

    def is_open(self, path: str) -> bool:
        """Whether nobody is asked who calls somebody else's method: health, reflection."""
        is_told = path.startswith(_HEALTH) and self._options.open_health
        return is_told or not self._access.is_asked

    def _identify(self, call: Call) -> tuple[Shown, Principal]:
        context = call.context
        metadata = context.invocation_metadata() or ()
        found = shown(metadata, context.auth_context(), context.peer())
        return found, self._access.who(found)


def before(behaviour: Any, method: str, greeted: Greeted, refuse: Refuse) -> Any:
    """A method of somebody else's that asks first."""

    async def one(request: Any, context: Context) -> Any:
        call = Call.begin(context, method)
        try:
            async with greeted(call):
                return await behaviour(request, context)
        except SecurityError as error:
            await refuse(call, error)  # which raises

    async def several(request: Any, context: Context) -> None:
        call = Call.begin(context, method)
        try:
            async with greeted(call):
                # Written, not yielded: what yields cannot be ended from outside.
                async for answer in behaviour(request, context):
                    await context.write(answer)
        except SecurityError as error:
            await refuse(call, error)

    return several if inspect.isasyncgenfunction(behaviour) else one
