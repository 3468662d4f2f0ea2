"""Spans of calls at a real collector."""

import itertools
import json
import logging
import time

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider

from client.context import request_id
from client.sync import Client
from deqlm.v1 import common_pb2, generation_pb2
from server.logs import JsonFormatter
from server.tracing import tracer
from tests.server.calls import ENDLESS, FLUSH, Stubs, fails, to_input
from tests.server.collector import Collector
from tests.server.live import LiveServer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER = trace_pb2.Span.SPAN_KIND_SERVER
_numbers = itertools.count()


@pytest.fixture(scope="module")
def collector():
    """One for all tests that leave it as it was; each looks for its own traces."""
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tiny_models, collector):
    """A server that traces, for all tests that leave it as it was."""
    made = LiveServer(tiny_models, trace_endpoint=collector.endpoint)
    yield made
    made.close()


@pytest.fixture
def traced(server, collector):
    """Stubs; and what a call of theirs looks like at the collector, waited for."""
    stubs = Stubs(server.channel, owner="ann")
    owner = stubs.metadata

    def trace(call, *metadata):
        name = f"call-{next(_numbers)}"
        stubs.metadata = (*owner, ("x-request-id", name), *metadata)
        call(stubs)
        return collector.trace_of(name)

    return trace


def generation(prompt, tokens, **fields):
    stop = generation_pb2.StopOptions(max_tokens=tokens, min_tokens=tokens)
    return generation_pb2.GenerateRequest(prompt=to_input(prompt), stop=stop, **fields)


def is_within(inner, outer):
    """Instants are rounded to a nanosecond, and floats of them to some hundred."""
    return outer.begun - 1000 <= inner.begun <= inner.ended <= outer.ended + 1000


def test_a_scoring_call(traced):
    answers = []
    trace = traced(lambda stubs: answers.append(stubs.score("It was a dark night.")))
    solver = answers[0].solver
    root, prefill = trace.root, trace.one("prefill")
    assert (root.name, root.kind) == ("deqlm.v1.ScoringService/Score", SERVER)
    assert root.parent_id == ""
    assert root.resource["service.name"] == "deqlm"
    assert root.attributes["rpc.grpc.status_code"] == 0
    assert root.attributes["deqlm.model"] == "pieces"
    assert root.attributes["deqlm.finished"] == "scored"
    assert not root.is_error
    assert [span.name for span in trace.under(root)] == ["queue", "prefill"]
    solves = trace.under(prefill)
    assert {span.name for span in solves} == {"solve"}
    assert prefill.attributes["deqlm.calls"] == solver.nfe_total
    assert sum(s.attributes["deqlm.calls"] for s in solves) == solver.nfe_total
    assert sum(s.attributes["deqlm.tokens"] for s in solves) == solver.solved_tokens
    assert sum(s.attributes["deqlm.nfe"] for s in solves) == solver.token_evaluations
    assert max(s.attributes["deqlm.residual"] for s in solves) == solver.residual_max
    assert prefill.attributes["deqlm.status"] == "converged"
    assert all(is_within(span, root) for span in trace.under(root))
    assert all(is_within(span, prefill) for span in solves)
    assert all(one.ended == other.begun for one, other in itertools.pairwise(solves))
    assert abs(root.begun / 1e9 - time.time()) < 60


def test_a_generation(traced):
    events = []
    trace = traced(lambda s: events.extend(s.generate(generation("It was a dark night", 20))))
    root, prefill, decode = trace.root, trace.one("prefill"), trace.one("decode")
    assert [span.name for span in trace.under(root)] == ["queue", "prefill", "decode"]
    assert prefill.ended == decode.begun
    solves = trace.under(decode)
    assert 1 < len(solves) <= 20
    # The last token drawn is not solved any more, the one before the first has been.
    assert decode.attributes["deqlm.tokens"] == 19
    solver = events[-1].finished.solver
    total = prefill.attributes["deqlm.calls"] + decode.attributes["deqlm.calls"]
    assert total == solver.nfe_total
    assert all(is_within(span, decode) for span in solves)


def test_long_ones_have_few_spans(traced):
    trace = traced(lambda s: list(s.generate(generation("It was dark. " * 40, 150))))
    prefill, decode = trace.one("prefill"), trace.one("decode")
    for phase, tokens in ((prefill, 150), (decode, 149)):
        solves = trace.under(phase)
        assert 16 <= len(solves) <= 32
        told = sum(span.attributes["deqlm.tokens"] for span in solves)
        assert told == phase.attributes["deqlm.tokens"] >= tokens
        assert sum(s.seconds for s in solves) == pytest.approx(phase.seconds, rel=0.5)


def test_a_stream_of_many_pieces_has_few_spans(traced, monkeypatch):
    monkeypatch.setattr(tracer, "MOST_SPANS", 20)
    trace = traced(lambda stubs: list(stubs.stream(["It", FLUSH] * 30)))
    assert trace.root.name == "deqlm.v1.ScoringService/ScoreStream"
    assert len(trace.spans) == 21
    assert trace.root.attributes["deqlm.dropped_spans"] > 0
    assert 2 < len(trace.named("queue")) < 30


def test_candidates(traced):
    candidates = [to_input(text) for text in ("dark", "dark night", "bright")]
    trace = traced(lambda stubs: stubs.score("It was a", candidates=candidates))
    assert trace.one("prefill").attributes["deqlm.tokens"] >= 5


def test_the_store(make_server, collector, tmp_path):
    server = make_server(
        trace_endpoint=collector.endpoint, session_store=f"sqlite:{tmp_path / 'sessions'}"
    )
    stubs = Stubs(server.channel, owner="ann")
    owner = stubs.metadata
    session = stubs.create()
    stubs.metadata = (*owner, ("x-request-id", "kept"))
    stubs.score("It was", session_id=session)
    saved = collector.trace_of("kept")
    store = saved.one("store")
    assert store.attributes == {"deqlm.operation": "save"}
    assert store.parent_id == saved.root.span_id
    assert saved.one("prefill").ended <= store.begun + 1000
    stubs.metadata = (*owner, ("x-request-id", "dropped"))
    stubs.delete(session)
    assert collector.trace_of("dropped").one("store").attributes["deqlm.operation"] == "drop"


def test_a_session_that_comes_back_from_the_store(make_server, collector, tmp_path):
    store = f"sqlite:{tmp_path / 'sessions'}"
    first = make_server(session_store=store)
    session = Stubs(first.channel, owner="ann").create()
    Stubs(first.channel, owner="ann").score("It was", session_id=session)
    first.run(first.server.stop())
    second = make_server(session_store=store, trace_endpoint=collector.endpoint)
    stubs = Stubs(second.channel, owner="ann")
    stubs.metadata += (("x-request-id", "back"),)
    stubs.score("a dark night", session_id=session)
    trace = collector.trace_of("back")
    told = [(span.name, span.attributes.get("deqlm.operation")) for span in trace.under(trace.root)]
    assert told == [("store", "load"), ("queue", None), ("prefill", None), ("store", "save")]


def parent(flags):
    return ("traceparent", f"00-{TRACE}-{SPAN}-{flags}")


def test_the_client_names_the_trace(traced):
    trace = traced(lambda stubs: stubs.score("It"), parent("01"), ("tracestate", "a=1,b=2"))
    assert trace.root.trace_id == TRACE
    assert trace.root.parent_id == SPAN
    assert trace.one("prefill").parent_id == trace.root.span_id
    assert {span.state for span in trace.spans} == {"a=1,b=2"}


@pytest.mark.parametrize("value", ["00-zz", f"00-{'0' * 32}-{SPAN}-01", "x" * 10_000, ""])
def test_a_malformed_trace_is_none(traced, value):
    trace = traced(lambda stubs: stubs.score("It"), ("traceparent", value))
    assert trace.root.parent_id == ""


def test_what_the_client_does_not_record_is_not(server, collector, traced):
    stubs = Stubs(server.channel)
    other = TRACE[::-1]
    stubs.metadata = (("traceparent", f"00-{other}-{SPAN}-00"),)
    stubs.score("It")
    traced(lambda stubs: stubs.score("It"))
    spans = collector.wait(lambda spans: True)
    assert other not in {span.trace_id for span in spans}


def test_a_share_of_calls(make_server, collector):
    server = make_server(trace_endpoint=collector.endpoint, trace_ratio=0.0)
    stubs = Stubs(server.channel)
    stubs.metadata = (("x-request-id", "not-drawn"),)
    stubs.score("It")
    stubs.metadata = (("x-request-id", "named"), parent("01"))
    stubs.score("It")
    collector.trace_of("named")
    told = {s.attributes.get("deqlm.request_id") for s in collector.wait(lambda spans: True)}
    assert "not-drawn" not in told


def test_the_python_client_passes_its_span_on(server, collector):
    provider = TracerProvider(shutdown_on_exit=False)
    ours = provider.get_tracer("test")
    with Client(server.address) as client, request_id("from-python"):
        with ours.start_as_current_span("order") as span:
            client.score("It")
    provider.shutdown()
    root = collector.trace_of("from-python").root
    assert root.parent_id == f"{span.get_span_context().span_id:016x}"
    assert root.trace_id == f"{span.get_span_context().trace_id:032x}"


def test_a_refused_call(traced, caplog):
    with caplog.at_level(logging.INFO, "server.guard"):
        trace = traced(
            lambda s: fails(lambda: s.score("It", solver=common_pb2.SolverOptions(tol=5.0)))
        )
    assert trace.root.attributes["deqlm.reason"] == "INVALID_REQUEST"
    assert trace.root.attributes["rpc.grpc.status_code"] == 3
    assert not trace.root.is_error, "it is the caller's"
    assert trace.spans == [trace.root]
    (record,) = caplog.records
    assert json.loads(JsonFormatter().format(record))["trace_id"] == trace.root.trace_id


def test_a_defect(server, traced, monkeypatch):
    def broken(text):
        raise TypeError(text)

    monkeypatch.setattr(server.engine().tokenizer, "encode", broken)
    trace = traced(lambda stubs: fails(lambda: stubs.score("zebrafish")))
    assert trace.root.is_error
    assert trace.root.attributes["deqlm.reason"] == "INTERNAL"
    assert "zebrafish" not in repr(trace)


def test_a_cancelled_call_tells_what_it_had_done(server, traced):
    def cancel(stubs):
        call = stubs.begin_score("It was a dark night. " * 50, solver=ENDLESS)
        while server.engine().snapshot().running_jobs == 0:
            assert not call.done()
        call.cancel()

    trace = traced(cancel)
    assert trace.root.attributes["rpc.grpc.status_code"] == 1
    assert trace.one("prefill").ended <= trace.root.ended + 10**9


def test_a_late_call(traced):
    trace = traced(lambda s: fails(lambda: s.score("It was. " * 100, solver=ENDLESS, timeout=0.5)))
    assert trace.root.attributes["rpc.grpc.status_code"] == 4
    assert trace.root.is_error
    assert trace.named("queue")


def test_spans_hold_no_text_and_no_ids_of_sessions(server, collector, traced):
    stubs = Stubs(server.channel, owner="ann")
    session = stubs.create()
    traced(lambda s: s.score("the zebrafish", session_id=session))
    traced(lambda s: list(s.generate(generation("zebrafish", 3))))
    spans = collector.wait(lambda spans: True)
    assert "zebrafish" not in repr(spans)
    assert session not in repr(spans)
