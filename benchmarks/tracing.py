"""What spans cost: the same calls on a server that traces each, and on one that does not.

``python -m benchmarks.tracing`` starts both, and a collector, and takes turns between them.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from client.options import SamplingOptions, StopOptions
from client.sync import Client

ROUNDS, ROUND_S = 7, 1.5
LINE = "The time is out of joint: O cursed spite"


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts spans."""

    spans = 0

    def Export(self, request: Any, context: Any) -> Any:
        """Take a batch."""
        self.spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> int:
    """Measure, and print a table."""
    collector = _Collector()
    receiver = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    endpoint = ("--trace-endpoint", f"http://127.0.0.1:{port}")
    with _server() as off, _server(*endpoint) as on, Client(off) as plain, Client(on) as traced:
        for name, call in (("score a line", _score), ("generate 32 tokens", _generate)):
            _report(name, call, plain, traced)
    receiver.stop(0).wait()
    print(f"{collector.spans} spans came")
    return 0


def _report(name: str, call: Callable[[Client], None], plain: Client, traced: Client) -> None:
    for client in (plain, traced):
        _mean_ms(call, client)
    pairs = [(_mean_ms(call, plain), _mean_ms(call, traced)) for _ in range(ROUNDS)]
    off, on = (statistics.median(times) for times in zip(*pairs, strict=True))
    more = statistics.median(second - first for first, second in pairs)
    print(f"{name}: off {off:.3f} ms, on {on:.3f} ms, difference {more:+.3f} ms of {ROUNDS} pairs")


def _mean_ms(call: Callable[[Client], None], client: Client) -> float:
    count, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < ROUND_S:
        call(client)
        count += 1
    return 1000 * spent / count


def _score(client: Client) -> None:
    client.score(LINE)


def _generate(client: Client) -> None:
    stop = StopOptions(max_tokens=32, min_tokens=32)
    client.generate(LINE, stop=stop, sampling=SamplingOptions(seed=1)).result()


@contextmanager
def _server(*options: str) -> Iterator[str]:
    """A server on the bundled model; its address."""
    command = [sys.executable, "-m", "server", "--port", "0", "--metrics-port", "-1"]
    process = subprocess.Popen(
        [*command, "--prefix-cache", "0", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving .* at (\S+),", line):
                yield found[1]
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
