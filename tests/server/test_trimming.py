"""Memory that is free goes back to the system."""

import subprocess
import sys

import pytest

from server.trimming import _trimmer

_HOLES = """
import asyncio, contextlib, resource
from server import trimming

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

before = resident()
held = [bytes(20_000) for _ in range(10_000)]
held = held[::50]  # what stays is all over it
full = resident()
trimming.EVERY_S = 0.01

async def once():
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(trimming.trim_now_and_then(), 1)

asyncio.run(once())
print(before, full, resident())
"""


@pytest.mark.skipif(_trimmer() is None, reason="the C library has no malloc_trim")
def test_holes_are_given_back():
    told = subprocess.run(
        [sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True
    ).stdout
    before, full, after = map(int, told.split())
    assert full - before > 150, "glibc keeps them by itself"
    assert after - before < 50
