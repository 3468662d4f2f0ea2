"""Takes profiles: one at a time, of a bounded number of steps and for a bounded time."""

import asyncio
import datetime
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.engine.engine import Engine
from server.engine.errors import EngineFailed
from server.engine.recording import Recording, warm_up
from server.profiling import files
from server.profiling.errors import ProfileFailed, ProfileRunning, ProfilesOff
from server.profiling.stacks import Stacks

DEFAULT_STEPS, MOST_STEPS = 50, 1000
DEFAULT_TIME_S, LONGEST_S = 10.0, 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile that is written.

    Attributes:
        model: whose engine it is of.
        folder: with the files.
        files: their names.
        steps: of the engine that it has; fewer than wanted where there was too little to do.
        seconds: that it covers.
        samples: how often stacks were looked at.
    """

    model: str
    folder: Path
    files: tuple[str, ...]
    steps: int
    seconds: float
    samples: int


class Profiles:
    """All that are taken of one server."""

    def __init__(self, folder: Path | None, version: str) -> None:
        """Write to a folder; None to take none."""
        self._folder, self._version = folder, version
        self._until: float | None = None
        self._is_warm = False
        self._closed = asyncio.Event()

    async def look(self) -> None:
        """Warn if none could be written now: who wants one does so in the midst of trouble."""
        if self._folder is None:
            return
        try:
            files.discard(await asyncio.to_thread(files.make, self._folder))
        except OSError as error:
            _log.warning("no profiles can be taken: %s", _failed(self._folder, error))

    def close(self) -> None:
        """Have one that is being taken end now, and be written; on the event loop's thread."""
        self._closed.set()

    async def take(self, engine: Engine, *, steps: int, max_time_s: float, why: str) -> Profile:
        """Record the next steps of an engine, and write them.

        Args:
            engine: that is to be looked at.
            steps: most of them.
            max_time_s: seconds after which it ends all the same.
            why: id of the request, or what else asks for it, for whoever reads it.

        Raises:
            ProfilesOff, ProfileRunning, ProfileFailed: as they say.
            EngineFailed: the engine's thread is gone.
        """
        if self._folder is None:
            raise ProfilesOff
        now = time.monotonic()
        if self._until is not None:
            raise ProfileRunning(max(1.0, self._until - now))
        if not engine.alive:
            raise EngineFailed(f"the thread of model {engine.name!r} is gone")
        self._until = now + max_time_s
        try:
            return await self._take(self._folder, engine, steps, max_time_s, why)
        except OSError as error:
            raise _failed(self._folder, error) from error
        finally:
            self._until = None

    async def _take(
        self, folder: Path, engine: Engine, steps: int, max_time_s: float, why: str
    ) -> Profile:
        place = await asyncio.to_thread(files.make, folder)
        try:
            if not self._is_warm:
                await asyncio.to_thread(warm_up)
                self._is_warm = True
            recording = Recording(steps, engine.device)
            begun, wall = time.monotonic(), datetime.datetime.now(datetime.UTC)
            with Stacks() as stacks:
                await self._record(engine, recording, max_time_s)
            seconds = time.monotonic() - begun
            about = {
                "model": engine.name,
                "begun": wall.isoformat(timespec="milliseconds"),
                "steps": recording.steps,
                "seconds": round(seconds, 6),
                "stack_samples": stacks.samples,
                "request_id": why,
                "device": str(engine.device),
                "threads": engine.threads,
                "torch": torch.__version__,
                "deqlm": self._version,
            }
            await asyncio.to_thread(files.fill, place, recording, stacks.text(), about)
            name = f"{wall:%Y%m%dT%H%M%S}{wall.microsecond // 1000:03d}Z-{_plain(engine.name)}"
            made = await asyncio.to_thread(files.publish, place, name)
        finally:
            await asyncio.shield(asyncio.to_thread(files.discard, place))
        _log.info("profile of %d steps of model %s: %s", recording.steps, engine.name, made)
        return Profile(
            model=engine.name,
            folder=made,
            files=(files.TRACE, files.STACKS, files.ABOUT),
            steps=recording.steps,
            seconds=seconds,
            samples=stacks.samples,
        )

    async def _record(self, engine: Engine, recording: Recording, max_time_s: float) -> None:
        """Record until there are steps enough, or the time is up; or caller or server go."""
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wrap_future(engine.record(recording))
            over = asyncio.wrap_future(recording.over)
            over.add_done_callback(lambda it: it.cancelled() or it.exception())
            ends: set[asyncio.Future[Any]] = {over, closed}
            await asyncio.wait(ends, timeout=max_time_s, return_when=asyncio.FIRST_COMPLETED)
        except RuntimeError as error:  # as where something else in the process is profiled
            raise ProfileFailed("torch's profiler does not begin; is it in use?") from error
        finally:
            closed.cancel()
            # To wait for the engine's thread is no matter for the event loop.
            ending = asyncio.to_thread(engine.end_recording)
            await asyncio.shield(asyncio.wrap_future(await ending))
        cause = recording.over.exception(0)
        if cause is not None:
            raise ProfileFailed(f"torch's profiler has failed: {type(cause).__name__}") from cause


def _failed(folder: Path, error: OSError) -> ProfileFailed:
    said = error.strerror or "unknown"
    return ProfileFailed(
        f"profile_dir must be a folder with room for a profile, got {folder}: {said}"
    )


def _plain(name: str) -> str:
    """A model's name as part of a file's."""
    return "".join([char if char.isalnum() or char in "._-" else "_" for char in name])[:64]
