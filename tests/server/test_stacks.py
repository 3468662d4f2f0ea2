"""Stacks of the threads of this process."""

import threading
import time

from server.profiling.stacks import Stacks
from tests.server.calls import TIMEOUT_S


def test_they_are_of_the_other_threads():
    stop = threading.Event()
    waiting = threading.Thread(target=lambda: stop.wait(TIMEOUT_S), name="a;b")
    waiting.start()
    with Stacks() as stacks:
        while stacks.samples < 5:
            time.sleep(0.001)
    stop.set()
    waiting.join()
    lines = stacks.text().splitlines()
    assert any(line.startswith("a:b;") for line in lines)
    assert any("test_they_are_of_the_other_threads (server/test_stacks.py:" in li for li in lines)
    assert not any(line.startswith("stacks;") for line in lines)


def test_deep_ones_are_cut():
    def deep(levels, act):
        return deep(levels - 1, act) if levels else act()

    with Stacks() as stacks:

        def wait():
            while stacks.samples < 3:
                time.sleep(0.001)

        deep(300, wait)
    depths = [line.count(";") for line in stacks.text().splitlines()]
    assert max(depths) == 100
