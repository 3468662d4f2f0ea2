"""Who asks for OpenMetrics is shown the traces that calls belong to, and nothing malformed."""

import re
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from deqlm.v1 import generation_pb2
from tests.server.calls import Stubs, to_input

TRACE = "0af7651916cd43dd8448eb211c80319c"
OPEN = "application/openmetrics-text; version=1.0.0"


def page(server, accept):
    """Media type and text of the metrics, as somebody who accepts that gets them."""
    request = urllib.request.Request(
        f"http://{server.metrics_address}/metrics", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def exemplars(server):
    """Trace ids by the family that shows them."""
    kind, text = page(server, OPEN)
    assert kind.startswith("application/openmetrics-text")
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    return found


@pytest.fixture
def server(make_server):
    return make_server()


def generate(server, parent):
    stubs = Stubs(server.channel)
    stubs.metadata = (("traceparent", parent),)
    stop = generation_pb2.StopOptions(max_tokens=3, ignore_eos=True)
    list(stubs.generate(generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)))
    stubs.score([1, 2])


def test_latencies_of_requests_name_traces(server):
    generate(server, f"00-{TRACE}-b7ad6b7169203331-01")
    names = (
        "time_to_first_token_seconds e2e_request_latency_seconds request_queue_time_seconds "
        "request_time_per_output_token_seconds request_prefill_time_seconds "
        "request_decode_time_seconds"
    )
    assert exemplars(server) == {f"deqlm_{name}": {TRACE} for name in names.split()}


@pytest.mark.parametrize(
    "parent",
    [
        f"00-{TRACE}-b7ad6b7169203331-00",  # not recorded: nobody could find it
        f"00-{TRACE}-b7ad6b7169203331",
        'x" 1\nevil_total 7 # {a="b"} 1',
        "0" * 4000,
    ],
)
def test_what_names_no_recorded_trace_is_not_shown(server, parent):
    if "\n" not in parent:  # which gRPC's client refuses to send
        generate(server, parent)
    assert exemplars(server) == {}


def test_the_plain_format_has_none(server):
    generate(server, f"00-{TRACE}-b7ad6b7169203331-01")
    kind, text = page(server, "text/plain")
    assert kind.startswith("text/plain")
    assert TRACE not in text
    assert re.search(r"^deqlm_ready 1\.0$", text, re.MULTILINE)
