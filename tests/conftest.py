"""What all tests share: reproducible property tests, and one thread per tensor operation."""

import os
import signal

from hypothesis import settings

from tests.server.live import leaves_nothing, live_server, make_server, tiny_models
from tests.server.redis_server import redis_server

__all__ = ["leaves_nothing", "live_server", "make_server", "redis_server", "tiny_models"]

# The models here are tiny: a second thread costs more than it gains, and changes rounding.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore it, and children inherit that: those that the
# tests start are to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Fixed examples: a failure is one that everybody sees. Times vary with the machine's load.
settings.register_profile("deqlm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("deqlm")
