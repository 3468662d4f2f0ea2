"""The sending processes, as the command sees them."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from loadtest.errors import LoadTestError
from loadtest.settings import Settings
from loadtest.stages import Stage

_START_S: Final = 60.0
_PLAN_S: Final = 120.0
_LEAD_S: Final = 0.2
"""Between the order to begin and the begin, so that no process is late."""
_STOP_S: Final = 10.0
_LONGEST_LINE: Final = 2**22


class Crew:
    """So many processes that send the requests of a stage together."""

    def __init__(self, settings: Settings, out: Path) -> None:
        """Take what they are to do; ``out``: where they write their records."""
        self._settings, self._out = settings, out
        self._members: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        """Start them, and wait until all have connections. Raises LoadTestError."""
        for number in range(self._settings.run.processes):
            member = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loadtest.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
            )
            self._members.append(member)
            told = {"settings": self._settings.to_json(), "process": number, "out": str(self._out)}
            self._tell(member, told)
        await self._all("ready", _START_S)

    async def plan(self, stage: Stage) -> int:
        """Have them draw the requests of a stage; how many there are. Raises LoadTestError."""
        self._tell_all({"order": "plan", "stage": stage.to_json()})
        return sum(await self._all("planned", _PLAN_S))

    async def stage(self, stage: Stage) -> tuple[float, list[dict[str, Any]]]:
        """Have them send; its begin on the monotonic clock, and what each counted.

        Raises:
            LoadTestError: one ended, or has not come to an end long after the last deadline.
        """
        start = time.monotonic() + _LEAD_S
        self._tell_all({"order": "start", "stage": stage.to_json(), "start": start})
        longest_s = stage.total_s + self._settings.run.timeout_s + _PLAN_S
        return start, await self._all("done", longest_s)

    def stop(self) -> None:
        """End the stage that is running; what is under way is cut off."""
        self._tell_all({"order": "stop"})

    async def close(self) -> None:
        """End them; one that does not end is killed."""
        for member in self._members:
            if member.stdin is not None:
                member.stdin.close()
        for member in self._members:
            try:
                await asyncio.wait_for(member.wait(), _STOP_S)
            except TimeoutError:
                member.kill()
                await member.wait()

    def _tell_all(self, order: dict[str, Any]) -> None:
        for member in self._members:
            self._tell(member, order)

    @staticmethod
    def _tell(member: asyncio.subprocess.Process, order: dict[str, Any]) -> None:
        assert member.stdin is not None, "made with a pipe"
        if not member.stdin.is_closing():
            member.stdin.write((json.dumps(order) + "\n").encode())

    async def _all(self, key: str, timeout_s: float) -> list[Any]:
        """One answer of each."""
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*(self._one(m, key) for m in self._members)))
        except TimeoutError:
            raise LoadTestError(f"a sending process has not answered in {timeout_s:g} s") from None

    @staticmethod
    async def _one(member: asyncio.subprocess.Process, key: str) -> Any:
        assert member.stdout is not None, "made with a pipe"
        line = await member.stdout.readline()
        if not line:
            code = await member.wait()
            raise LoadTestError(f"a sending process ended with code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise LoadTestError(f"a sending process failed: {answer['error']}")
        return answer[key]
