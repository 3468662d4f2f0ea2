"""What engines' threads tell arrives on the event loop, whole and in order."""

import asyncio
import threading

from server.engine.errors import Cancelled
from server.engine.results import Event, Failed
from server.events import Events, Post

THREADS, EACH = 4, 500


def event() -> Failed:
    return Failed(Cancelled("no matter why"))


def test_events_of_many_threads_all_come_in_their_order() -> None:
    async def main() -> None:
        post = Post()
        queues = [asyncio.Queue[Event]() for _ in range(THREADS)]
        sent = [[event() for _ in range(EACH)] for _ in queues]

        def tell(queue: asyncio.Queue[Event], events: list[Failed]) -> None:
            for each in events:
                post.send(queue, each)

        threads = [
            threading.Thread(target=tell, args=pair) for pair in zip(queues, sent, strict=True)
        ]
        for thread in threads:
            thread.start()
        for queue, events in zip(queues, sent, strict=True):
            for each in events:
                assert await asyncio.wait_for(queue.get(), 60) is each
        for thread in threads:
            thread.join()

    asyncio.run(main())


def test_one_wake_brings_all_that_was_sent_before_the_loop_looked(monkeypatch) -> None:
    async def main() -> None:
        loop, wakes = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *args: (wakes.append(args), wake(*args))
        )
        post = Post()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for _ in range(2):
            for _ in range(10):
                post.send(queue, event())
            for _ in range(10):
                await queue.get()
        assert len(wakes) == 2

    asyncio.run(main())


def test_nobody_minds_events_after_the_loops_end() -> None:
    async def main() -> Events:
        return Events(Post())

    events = asyncio.run(main())
    for _ in range(2):
        events.sink(event())
