"""Memory that is free goes back to the system."""

import os
import platform
import subprocess
import sys

import pytest

_PINNED = """
import resource, sys
from server.allocator import keep_large_blocks_apart

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

if sys.argv[1] == "apart":
    keep_large_blocks_apart()
before = resident()
bytearray(30_000_000)  # from now on glibc takes what is smaller from where small blocks are
large, small = [], []
for _ in range(1000):
    large.append(bytearray(200_000))
    small.append(bytearray(1_000))
large.clear()
print(resident() - before)
"""


def grown_mib(how: str, **variables: str) -> int:
    """By how much a process has grown that keeps small blocks between large ones it frees."""
    command, environment = [sys.executable, "-c", _PINNED, how], os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_what_large_blocks_leave_goes_back_to_the_system():
    assert grown_mib("as it is") > 50, "glibc keeps it by itself"
    assert grown_mib("apart") < 20
    assert grown_mib("apart", MALLOC_MMAP_THRESHOLD_="33554432") > 50, "its owner has set it"
