"""A stream that the server refuses at once, while the client has more to send."""

import pytest

from client.aio import AsyncClient
from client.errors import InvalidArgument
from client.sync import Client

MANY = ["It was "] * 30
PROBLEM = r"config\.top_k must be in \[0, 100\], got 1000"


async def test_the_asynchronous_client_tells_why(live_server):
    async with AsyncClient(live_server.address) as client:
        for _ in range(40):
            with pytest.raises(InvalidArgument, match=PROBLEM):
                _ = [score async for score in client.score_stream(MANY, top_k=1000)]


def test_the_synchronous_client_tells_why(live_server):
    with Client(live_server.address) as client:
        for _ in range(40):
            with pytest.raises(InvalidArgument, match=PROBLEM):
                list(client.score_stream(MANY, top_k=1000))
