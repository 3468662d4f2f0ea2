"""How late this process is: were it the bottleneck, it would measure itself."""

import asyncio
import contextlib
import time
from typing import Any, Final, Self

from loadtest.quantiles import Histogram

_EVERY_S: Final = 0.02


class Ticker:
    """Sleeps again and again, and notes by how much too long: answers wait so long to be read."""

    def __init__(self) -> None:
        self._late = Histogram()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        self._task = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(self, *_: Any) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def quantiles(self) -> dict[str, float]:
        """Of the seconds that it slept too long."""
        return self._late.quantiles().to_json()

    async def _tick(self) -> None:
        while True:
            due = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._late.add(time.monotonic() - due)
