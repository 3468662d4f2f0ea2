"""What calls carry of where they are made."""

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider

from client.aio import AsyncClient
from client.context import call_metadata, request_id
from client.errors import InvalidArgument


@pytest.mark.parametrize("value", ["", "a b", "a\n", "x" * 129, "é"])
def test_an_id_that_no_server_would_take(value):
    with pytest.raises(InvalidArgument, match="request_id must be 1 to 128"), request_id(value):
        pass


def test_ids_are_nested():
    with request_id("a"):
        with request_id("b"):
            assert call_metadata() == (("x-request-id", "b"),)
        assert call_metadata() == (("x-request-id", "a"),)
    assert call_metadata() == ()


@pytest.fixture
def tracer():
    """A tracer whose spans nobody collects."""
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider.get_tracer("test")
    provider.shutdown()


def parent_of(span):
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_the_current_span_goes_along(fake, client, tracer):
    with tracer.start_as_current_span("ours") as span:
        client.delete_session("s1")
    client.delete_session("s1")
    with_it, without = fake.calls
    assert with_it.metadata["traceparent"] == parent_of(span)
    assert "traceparent" not in without.metadata


async def test_the_current_span_goes_along_with_the_asyncio_client(fake, tracer):
    async with AsyncClient(fake.address) as client:
        with tracer.start_as_current_span("ours") as span, request_id("r1"):
            await client.delete_session("s1")
    (call,) = fake.calls
    assert call.metadata["traceparent"] == parent_of(span)
    assert call.metadata["x-request-id"] == "r1"


def test_a_program_without_spans_does_not_load_opentelemetry():
    code = (
        "import sys; from client.sync import Client; from client.context import call_metadata; "
        "call_metadata(); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
