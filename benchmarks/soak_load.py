"""What the soak does to a server: all kinds of calls, and clients of all kinds of manners."""

import asyncio
import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from client._aio_session import AsyncSession
from client.aio import AsyncClient
from client.errors import DeqlmError
from client.options import SamplingOptions, StopOptions

MOST_SESSIONS = 3
"""Of one worker."""

Act = Callable[[], Awaitable[None]]


class Worker:
    """One client: does one thing after the other, drawn by its own generator."""

    def __init__(self, address: str, words: list[str], seed: int) -> None:
        """Takes the server's address, words to make texts of, and what to draw by."""
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._address, self._words = address, words
        self._random = random.Random(seed)
        self._client = AsyncClient(address, owner=f"worker {seed}", timeout_s=60.0)
        self._sessions: list[AsyncSession] = []
        self._acts: list[tuple[Act, int]] = [
            (self._score, 6),
            (self._candidates, 2),
            (self._continue, 6),
            (self._generate, 5),
            (self._stream, 3),
            (self._fork, 3),
            (self._delete, 2),
            (self._cancel, 3),
            (self._late, 3),
            (self._vanish, 1),
            (self._read_slowly, 1),
            (self._garbage, 1),
            (self._bad_input, 1),
        ]

    async def work(self, until: float) -> None:
        """Act until an instant of the monotonic clock, and leave no session behind."""
        acts, weights = zip(*self._acts, strict=True)
        while time.monotonic() < until:
            (act,) = self._random.choices(acts, weights)
            name = act.__name__.strip("_")
            try:
                await act()
                self.done[name] += 1
            except DeqlmError as error:
                self.failed[f"{name} {error.code.name}"] += 1
        while self._sessions:
            await self._sessions.pop().delete()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _text(self, most: int = 40) -> str:
        size = self._random.randint(1, most)
        begin = self._random.randrange(len(self._words) - size)
        return " ".join(self._words[begin : begin + size])

    async def _score(self) -> None:
        await self._client.score(self._text(), top_k=self._random.choice([None, 3]))

    async def _candidates(self) -> None:
        await self._client.score(self._text(20), candidates=[self._text(6) for _ in range(4)])

    async def _session(self) -> AsyncSession:
        if len(self._sessions) < MOST_SESSIONS:
            self._sessions.append(await self._client.session())
        return self._random.choice(self._sessions)

    async def _continue(self) -> None:
        await (await self._session()).score(self._text(20))

    async def _generate(self) -> None:
        sampling = SamplingOptions(temperature=0.8, seed=self._random.getrandbits(30))
        stop = StopOptions(max_tokens=self._random.randint(1, 30))
        session = await self._session() if self._random.random() < 0.5 else None
        start = self._client.generate if session is None else session.generate
        await start(self._text(8), sampling=sampling, stop=stop).result()

    async def _stream(self) -> None:
        pieces = [self._text(8) + " " for _ in range(4)]
        async for _ in self._client.score_stream(pieces):
            pass

    async def _fork(self) -> None:
        session = await self._session()
        copy = await session.fork()
        self._sessions.append(copy)
        await copy.score(self._text(6))
        if len(self._sessions) > MOST_SESSIONS:
            await self._sessions.pop(0).delete()

    async def _delete(self) -> None:
        if self._sessions:
            await self._sessions.pop(self._random.randrange(len(self._sessions))).delete()

    async def _cancel(self) -> None:
        """At any moment: before the first token, amid them, at the end."""
        call = asyncio.ensure_future((await self._session()).score(self._text(60)))
        await asyncio.sleep(self._random.random() * 0.2)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    async def _late(self) -> None:
        await (await self._session()).score(
            self._text(60), timeout_s=self._random.uniform(0.001, 0.1)
        )

    async def _vanish(self) -> None:
        """A connection that is cut amid a stream."""
        async with AsyncClient(self._address, owner="ghost") as client:
            generation = client.generate(self._text(4), stop=_LONG)
            async for _ in generation:
                break

    async def _read_slowly(self) -> None:
        generation = self._client.generate(self._text(4), stop=_LONG)
        async for _ in generation:
            await asyncio.sleep(0.3)
            break
        generation.close()

    async def _garbage(self) -> None:
        """A connection that speaks no HTTP/2, and one that says nothing."""
        host, _, port = self._address.rpartition(":")
        for data in (self._random.randbytes(200), b""):
            with socket.create_connection((host, int(port)), timeout=5) as wire:
                wire.sendall(data)

    async def _bad_input(self) -> None:
        with contextlib.suppress(DeqlmError):
            await self._client.score("x", top_k=100_000)


_LONG = StopOptions(max_tokens=400, ignore_eos=True)
