"""grpc.health.v1: the empty name answers liveness, a service's full name readiness."""

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME, aio

__all__ = ["SERVICE_NAME", "STORE", "Health"]

STORE = "deqlm.store"
"""Name under which the session store's health is told."""

_Status = health_pb2.HealthCheckResponse


class Health(aio.HealthServicer):
    """Serves the health of some services."""

    def __init__(self, services: Sequence[str]) -> None:
        """The server itself is alive from the start."""
        super().__init__()
        self._services = tuple(services)
        self._closed = asyncio.Event()

    async def set_loading(self) -> None:
        """The services are known, and do not answer yet."""
        for service in self._services:
            await self.set(service, _Status.NOT_SERVING)

    async def set_ready(self) -> None:
        """The services answer from now on."""
        for service in self._services:
            await self.set(service, _Status.SERVING)

    async def set_store(self, *, is_up: bool) -> None:
        """The session store answers, or does not: the services go on either way."""
        await self.set(STORE, _Status.SERVING if is_up else _Status.NOT_SERVING)

    async def set_stopping(self) -> None:
        """Nothing answers any more, for good; those who watch are told."""
        await self.enter_graceful_shutdown()

    def close(self) -> None:
        """End all watches, which would else never end."""
        self._closed.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell the status now and whenever it changes."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({watch, closed}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
        finally:
            watch.cancel()
            closed.cancel()
