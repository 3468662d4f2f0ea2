"""Whether everything adds up: what is given out is what is held, in the engines and at the edge."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from server.attempts import Attempts
from server.engine.engine import Engine
from server.guard import Guard
from server.persistence import Persistence
from server.servicers.streams import Streams


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check has found.

    Attributes:
        problems: what does not add up, one sentence each.
        calls: that are being answered.
        leases: sessions that a call works on.
        streams: that are open.
    """

    problems: tuple[str, ...]
    calls: int
    leases: int
    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariants:
    """Checks a server; for its event loop, on which alone the edge changes.

    Attributes:
        engines: those there are.
        guard: counts calls.
        persistence: knows the leases that calls have.
        attempts: calls that go on without their clients.
        streams: those that are open.
    """

    engines: Callable[[], list[Engine]]
    guard: Guard
    persistence: Persistence
    attempts: Attempts
    streams: Streams

    async def check(self) -> Findings:
        """Look at each engine between two of its calls of f, and then at the edge."""
        found: list[str] = []
        for engine in self.engines():
            problems: list[str] = await asyncio.wrap_future(engine.check())
            found += problems
        return self._findings([*found, *self._edge()])

    def _findings(self, problems: list[str]) -> Findings:
        return Findings(
            problems=tuple(problems),
            calls=self.guard.running,
            leases=len(self.persistence.leases),
            streams=len(self.streams),
        )

    def _edge(self) -> list[str]:
        """Nothing is waited for, so that no call begins or ends meanwhile."""
        found = []
        calls = self.guard.running + len(self.attempts)
        leases, private = self.persistence.leases, 0
        for engine in self.engines():
            own = {lease.serial for name, lease in leases if name == engine.name}
            held, private = engine.sessions.leased(), private + engine.sessions.private()
            if own != held:
                found.append(f"model {engine.name!r}: leases {sorted(own ^ held)} are nobody's")
        if len(leases) > calls + len(self.persistence.settling):
            found.append(f"{calls} calls work on {len(leases)} sessions")
        if private > len(self.streams):
            found.append(f"{len(self.streams)} streams have {private} sessions of their own")
        if len(self.streams) > self.guard.running:
            found.append(f"{self.guard.running} calls are {len(self.streams)} streams")
        if self.guard.metered > self.guard.running:
            found.append(f"quotas count {self.guard.metered} calls, of {self.guard.running}")
        return found
