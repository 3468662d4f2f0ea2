"""Looks after what a server stands on, for as long as it serves, and tells by health."""

import asyncio
import logging
from collections.abc import Sequence

from server.engine.engine import Engine
from server.health import Health
from server.persistence import Persistence

_LOOK_AT_ENGINES_S = 1.0
_LOOK_AT_STORE_S = 0.25

_log = logging.getLogger(__name__)


async def watch_store(persistence: Persistence, health: Health) -> None:
    """Tell by health whether the session store does what it is asked; for ever."""
    was_up = True
    while True:
        await asyncio.sleep(_LOOK_AT_STORE_S)
        persistence.left.expire()
        if persistence.keeper.is_up != was_up:
            was_up = not was_up
            await health.set_store(is_up=was_up)


async def watch_engines(engines: Sequence[Engine], health: Health) -> None:
    """Tell by health when an engine's thread has ended, which only a defect can do."""
    while all(engine.alive for engine in engines):
        await asyncio.sleep(_LOOK_AT_ENGINES_S)
    _log.error("an engine's thread is gone: the server is not healthy any more")
    await health.set_stopping()
