"""How spans get to a collector: encrypted, at the end of a server, and while there is none."""

import re
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
import trustme

from server.config import ServerConfig, ServerConfigError
from server.tracing import tracer
from tests.server.calls import Stubs
from tests.server.collector import Collector
from tests.server.test_process import ROOT, Process


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.close()


def test_a_collector_with_a_certificate(make_server, tmp_path, monkeypatch):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    pair = (certificate.private_key_pem.bytes(), chain)
    collector = Collector(credentials=grpc.ssl_server_credentials([pair]))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
    stubs = Stubs(make_server(trace_endpoint=collector.endpoint).channel)
    stubs.metadata = (("x-request-id", "encrypted"),)
    stubs.score("It")
    assert collector.endpoint.startswith("https://")
    assert collector.trace_of("encrypted").one("prefill")
    collector.close()


def test_a_stopping_server_sends_what_it_has(tiny_models, collector):
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
        *("--trace-endpoint", collector.endpoint),
    )
    try:
        ready = process.wait_ready()
        with grpc.insecure_channel(ready[2]) as channel:
            stubs = Stubs(channel)
            stubs.metadata = (("x-request-id", "last"),)
            stubs.score("the of")
    finally:
        process.process.terminate()
    assert process.wait() == 0
    assert collector.trace_of("last").one("prefill")
    assert "WARNING" not in "".join(process.lines)


class TestWithoutACollector:
    def test_calls_go_on_and_it_is_said_once(self, tiny_models):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        process = Process(
            *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
            *("--trace-endpoint", f"http://127.0.0.1:{port}"),
        )
        try:
            ready = process.wait_ready()
            with grpc.insecure_channel(ready[2]) as channel:
                stubs = Stubs(channel)
                stubs.score("the of")
                said = process.wait_line(re.compile("spans cannot be sent to (.*)"))[1]
                until = time.monotonic() + 8.0  # another two batches fail in that time
                while time.monotonic() < until:
                    stubs.score("the of")
                late = Collector(port)
                try:
                    stubs.metadata = (("x-request-id", "seen"),)
                    stubs.score("the of")
                    late.trace_of("seen")
                    process.wait_line(re.compile(r"are sent to .* again; \d+ or more were dropped"))
                finally:
                    late.close()
                stubs.score("the of")  # which nobody gets
        finally:
            process.process.terminate()
            begun = time.monotonic()
        assert process.wait() == 0
        assert time.monotonic() - begun < 20, "though nobody takes the last spans"
        assert "UNAVAILABLE" in said
        told = [line for line in process.lines if "127.0.0.1:" + str(port) in line]
        assert len(told) <= 3, "down, up, and perhaps down at the end"

    def test_one_that_does_not_answer_costs_bounded_memory_and_no_hang(
        self, make_server, monkeypatch
    ):
        collector = Collector()
        monkeypatch.setattr(tracer, "_MOST_WAITING", 64)
        monkeypatch.setattr(tracer, "_BATCH", 32)
        collector.block = threading.Event()
        server = make_server(trace_endpoint=collector.endpoint)
        stubs = Stubs(server.channel)
        for _ in range(60):
            stubs.score("It")
        processor = server.server._tracer._provider._active_span_processor._span_processors[0]
        assert collector.batches >= 1
        assert len(processor._batch_processor._queue) <= 64
        begun = time.monotonic()
        server.run(server.server.stop())
        assert time.monotonic() - begun < 10
        collector.block.set()
        collector.close()


BLOCKED = (
    "import sys; sys.modules['opentelemetry'] = None; from server.__main__ import main; "
    "sys.exit(main(sys.argv[1:]))"
)


def test_without_the_package_it_says_what_to_install(tiny_models):
    arguments = [
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
        *("--trace-endpoint", "http://127.0.0.1:4317"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "trace_endpoint needs OpenTelemetry" in done.stderr
    assert "pip install 'deqlm[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_tells_nothing_loads_nothing_for_it():
    """Neither this nor torch's profiler, whose first start takes seconds."""
    code = (
        "import sys; import server.app, server.__main__; "
        "rare = ('opentelemetry', 'torch._inductor'); "
        "print([name for name in sys.modules if name.startswith(rare)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trace_endpoint", "127.0.0.1:4317"),
        ("trace_endpoint", "http://collector"),
        ("trace_endpoint", "http://collector:0"),
        ("trace_endpoint", "http://collector:65536"),
        ("trace_endpoint", "http://user:secret@collector:4317"),
        ("trace_endpoint", "ftp://collector:4317"),
        ("trace_ratio", -0.1),
        ("trace_ratio", 1.1),
    ],
)
def test_impossible_options(field, value):
    with pytest.raises(ServerConfigError, match=f"{field} must be") as caught:
        ServerConfig(**{field: value})
    assert "secret" not in str(caught.value)
