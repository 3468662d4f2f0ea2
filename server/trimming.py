"""Gives memory that is free back to the system, which the allocator would keep."""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

EVERY_S = 60.0
"""Seldom enough to cost nothing: a pass takes some milliseconds, on a thread of its own."""


async def trim_now_and_then() -> None:
    """Trim for as long as it is not cancelled.

    Texts of all lengths leave holes between what stays. By its own rule glibc gives back what is
    free at the end of its memory alone, so that a process takes what its fullest moment took, and
    somewhat more with each fuller one.
    """
    trim = _trimmer()
    while trim is not None:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(trim, 0)


def _trimmer() -> Callable[[int], Any] | None:
    """``malloc_trim``; None where the C library has none."""
    try:
        found: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return found
