"""What a stream reads ahead of its scoring."""

import asyncio

import pytest

from deqlm.v1 import scoring_pb2
from server.servicers.inbox import Inbox

LARGE = 300_000
SMALL = 1_000


async def sent_ahead(size: int) -> int:
    """Messages of so many bytes that are taken from a client while nobody wants any."""
    sent = 0

    async def messages():
        nonlocal sent
        for _ in range(20):
            sent += 1
            yield scoring_pb2.ScoreStreamRequest(text="a" * size)

    inbox = Inbox(messages())
    for _ in range(1000):  # more than enough turns to read everything
        await asyncio.sleep(0)
    before = sent
    while await inbox.next() is not None:
        pass
    assert sent == 20
    return before


@pytest.mark.parametrize(("size", "ahead"), [(SMALL, 20), (LARGE, 1)])
async def test_large_messages_wait_at_the_client(size, ahead):
    assert await sent_ahead(size) == ahead
