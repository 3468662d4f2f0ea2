"""Everything that moves a metric, again and again, by threads of the test."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import grpc

from deqlm.v1 import common_pb2, generation_pb2
from tests.server.calls import FLUSH, Stubs, to_input
from tests.server.security.people import bearer, stubs_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
MISSING = common_pb2.SolverOptions(tol=1e-30, max_nfe=2)
"""With which no token converges."""


class Load:
    """Calls of every kind, until it ends; refused ones are part of it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._ann, self._bob = stubs_of(channel, "ann"), stubs_of(channel, "bob")
        trace = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
        self._ann.metadata = (*self._ann.metadata, trace)
        self._strangers = Stubs(channel)
        self._strangers.metadata = bearer("deqlm_nobody-0123456789")
        self._end = threading.Event()
        work: list[Callable[[], Any]] = [
            self._score,
            self._generate,
            self._use_sessions,
            self._stream,
            self._be_refused,
        ]
        self._threads = [threading.Thread(target=self._repeat, args=(w,)) for w in work]
        self.errors: list[Exception] = []
        self.codes: set[str] = set()
        self._sessions = [self._ann.create() for _ in range(4)]
        self._turns = itertools.cycle(self._sessions)
        for thread in self._threads:
            thread.start()

    def _repeat(self, work: Callable[[], Any]) -> None:
        while not self._end.is_set():
            try:
                work()
            except grpc.RpcError as error:
                self.codes.add(error.code().name)
            except Exception as error:
                self.errors.append(error)
                return
            self._end.wait(0.02)

    def _score(self) -> None:
        self._ann.score([1, 2, 3, 4, 5])
        self._ann.score([3, 4], solver=MISSING)

    def _generate(self) -> None:
        stop = generation_pb2.StopOptions(max_tokens=8, ignore_eos=True)
        request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)
        list(self._ann.generate(request))

    def _use_sessions(self) -> None:
        self._ann.score([5], session_id=next(self._turns))

    def _stream(self) -> None:
        list(self._ann.stream([[1, 2], FLUSH, [3]]))

    def _be_refused(self) -> None:
        calls = [self._ann.begin_score([7] * 40) for _ in range(12)]  # more than may wait
        for call in calls:
            call.exception()
        for stubs in (self._bob, self._strangers):
            try:
                stubs.score([1])
            except grpc.RpcError as error:
                self.codes.add(error.code().name)
        self._ann.score("")  # INVALID_ARGUMENT

    def end(self) -> None:
        """Ends it; returns when all threads are over."""
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=100)
