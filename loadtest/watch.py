"""Looks at the server during a run: whether it is still there, and how it does."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any, Final

from client.aio import AsyncClient
from client.errors import DeadlineExceeded, DeqlmError, Unavailable
from loadtest.counts import Metrics
from loadtest.errors import LoadTestError

_EVERY_S: Final = 1.0
ANSWER_S: Final = 20.0
"""A server that has not told its health for so long has hung."""
_MOST_MISSED: Final = 3
"""Times in a row that there is no connection."""


class Watch:
    """Asks for health every second, and notes what the metrics tell."""

    def __init__(self, client: AsyncClient, metrics: Metrics | None, path: Path) -> None:
        """Take a client that waits ``ANSWER_S``; ``path``: file of JSON lines to write."""
        self._client, self._metrics = client, metrics
        self._file = path.open("w", encoding="utf-8")
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run's begin."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def until_lost(self) -> str:
        """Look until the server is gone; how that shows."""
        missed = 0
        while True:
            try:
                await self._client.health()
                missed = 0
            except DeadlineExceeded:
                return f"the server has not told its health in {ANSWER_S:g} s"
            except Unavailable as error:
                missed += 1
                if missed >= _MOST_MISSED:
                    return f"the server is gone: {error.message}"
            except DeqlmError:  # it answers, be it that this caller may not ask
                missed = 0
            if missed == 0:
                await self._sample()
            await asyncio.sleep(_EVERY_S)

    async def _sample(self) -> None:
        """Note the gauges; that a look fails is no loss."""
        if self._metrics is None:
            return
        with contextlib.suppress(LoadTestError):
            line: dict[str, Any] = {"run_s": round(self.seconds, 3)}
            line |= (await self._metrics.look()).gauges
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
