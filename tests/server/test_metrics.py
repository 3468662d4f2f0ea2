"""Metrics move, are named as documented, and belong to one server."""

import math
import re
import urllib.request
from importlib import metadata
from pathlib import Path

import grpc
import pytest

from cli.build import this_build
from deqlm.v1 import common_pb2, generation_pb2
from server.engine.solve import Solved
from server.metrics.counts import Metrics
from tests.server.calls import ENDLESS, Stubs, to_input
from tests.server.test_contention import wait_for

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"


def moved(server, action):
    """What an action adds to the samples."""
    before = server.metrics()
    action()
    after = server.metrics()
    return {name: after[name] - before.get(name, 0.0) for name in after}


@pytest.fixture
def server(make_server):
    return make_server()


def test_scoring(server):
    stubs = Stubs(server.channel)
    model = '{model="pieces"}'
    candidates = [to_input([5, 6]), to_input([7])]
    change = moved(server, lambda: stubs.score([1, 2, 3], candidates=candidates))
    name = 'deqlm_request_success_total{finished_reason="scored",method="Score",model="pieces"}'
    assert change[name] == 1
    assert change[f"deqlm_prompt_tokens_total{model}"] == 3
    assert change[f"deqlm_scored_tokens_total{model}"] == 6
    assert change[f"deqlm_request_prompt_tokens_sum{model}"] == 3
    assert change[f"deqlm_request_queue_time_seconds_count{model}"] == 1
    assert change[f"deqlm_e2e_request_latency_seconds_count{model}"] == 1
    calls = change[f"deqlm_f_calls_total{model}"]
    assert calls == change[f"deqlm_iteration_tokens_count{model}"] > 0
    assert calls == change[f"deqlm_f_call_seconds_count{model}"]
    # <eos>, three tokens, and of each candidate all but the last, which predicts nothing.
    assert change[f"deqlm_nfe_per_token_count{model}"] == 5
    assert change[f"deqlm_nfe_per_token_sum{model}"] == change[f"deqlm_iteration_tokens_sum{model}"]
    assert change[f"deqlm_token_residual_count{model}"] == 5
    # Every solve began at zeros, and no row took part in a call that its sequence's window lacks.
    assert change[f"deqlm_first_residual_count{model}"] == 5
    assert change[f"deqlm_first_residual_sum{model}"] == pytest.approx(5, rel=1e-3)
    assert change[f"deqlm_window_tokens_sum{model}"] == change[f"deqlm_iteration_tokens_sum{model}"]
    sequences = change[f"deqlm_iteration_sequences_sum{model}"]
    assert change[f"deqlm_window_tokens_count{model}"] == sequences


def test_generation(server):
    stubs = Stubs(server.channel)
    model = '{model="pieces"}'
    stop = generation_pb2.StopOptions(max_tokens=5, ignore_eos=True)
    request = generation_pb2.GenerateRequest(prompt=to_input([1, 2]), stop=stop)
    change = moved(server, lambda: list(stubs.generate(request)))
    name = 'deqlm_request_success_total{finished_reason="length",method="Generate",model="pieces"}'
    assert change[name] == 1
    assert change[f"deqlm_prompt_tokens_total{model}"] == 2
    assert change[f"deqlm_generation_tokens_total{model}"] == 5
    assert change[f"deqlm_request_generation_tokens_sum{model}"] == 5
    assert change[f"deqlm_time_to_first_token_seconds_count{model}"] == 1
    assert change[f"deqlm_inter_token_latency_seconds_count{model}"] == 4
    assert change[f"deqlm_request_time_per_output_token_seconds_count{model}"] == 1
    assert change[f"deqlm_request_prefill_time_seconds_count{model}"] == 1
    assert change[f"deqlm_request_decode_time_seconds_count{model}"] == 1
    spent = change[f"deqlm_inter_token_latency_seconds_sum{model}"] / 4
    assert change[f"deqlm_request_time_per_output_token_seconds_sum{model}"] == pytest.approx(spent)


def test_failures(server):
    stubs = Stubs(server.channel)

    def fail():
        with pytest.raises(grpc.RpcError):
            stubs.score("")
        solver = common_pb2.SolverOptions(tol=1e-30, max_nfe=1000)
        with pytest.raises(grpc.RpcError):
            stubs.score([7] * 3000, solver=solver, timeout=1.0)
        server.run(server.server._guard.wait_idle(10))

    change = moved(server, fail)
    for code in ("INVALID_ARGUMENT", "DEADLINE_EXCEEDED"):
        assert change[f'deqlm_errors_total{{code="{code}",method="Score",model="pieces"}}'] == 1
    for reason in ("error", "abort"):
        labels = f'{{finished_reason="{reason}",method="Score",model="pieces"}}'
        assert change[f"deqlm_request_success_total{labels}"] == 1


def test_tokens_that_do_not_converge(server):
    solver = common_pb2.SolverOptions(tol=1e-30, max_nfe=2)
    change = moved(server, lambda: Stubs(server.channel).score([1, 2], solver=solver))
    assert change['deqlm_unconverged_tokens_total{model="pieces",status="max_nfe"}'] == 2
    assert change['deqlm_unconverged_requests_total{model="pieces",status="max_nfe"}'] == 1


def test_what_is_taken_over_is_told_beside_what_was_looked_up(make_server):
    server = make_server(prefix_cache=64)
    stubs = Stubs(server.channel)
    stubs.score([1, 2, 3, 4])
    change = moved(server, lambda: stubs.score([1, 2, 3, 4]))
    # <eos> and all but the last token, which predicts nothing.
    assert change['deqlm_prefix_cache_queries_total{model="pieces"}'] == 4
    assert change['deqlm_shared_tokens_total{model="pieces"}'] == 4


def test_waiting_requests_by_what_they_wait_for(make_server):
    server = make_server(max_running=4)
    ann, bob = Stubs(server.channel, owner="ann"), Stubs(server.channel, owner="bob")
    name = 'deqlm_num_requests_waiting_by_reason{{model="pieces",reason="{}"}}'
    calls = []

    def begin(stubs, reason, count):
        calls.append(stubs.begin_score([7] * 3000, solver=ENDLESS))
        wait_for(lambda: server.metrics()[name.format(reason)] == count)

    for _ in range(3):  # one place of four is kept
        begin(ann, "share", 0)
    wait_for(lambda: server.engine().snapshot().running_jobs == 3)
    begin(ann, "share", 1)
    begin(ann, "share", 2)
    calls.append(bob.begin_score([7] * 3000, solver=ENDLESS))
    wait_for(lambda: server.metrics()[name.format("places")] == 2)
    metrics = server.metrics()
    assert metrics[name.format("share")] == metrics[name.format("turn")] == 0
    assert metrics['deqlm_num_requests_waiting{model="pieces"}'] == 2
    assert metrics['deqlm_calls_running{method="Score"}'] == 6
    assert metrics['deqlm_limit{limit="max_running",model="pieces"}'] == 4
    for call in calls:
        call.cancel()
    wait_for(lambda: server.metrics()['deqlm_calls_running{method="Score"}'] == 0)


def test_what_runs(server):
    metrics = server.metrics()
    engine, versions = server.engine(), this_build()
    assert metrics["deqlm_ready"] == 1
    assert metrics['deqlm_engine_up{model="words"}'] == 1
    build = f'python="{versions.python}",revision="{versions.revision}"'
    build += f',torch="{versions.torch}",version="{versions.version}"'
    assert metrics[f"deqlm_build_info{{{build}}}"] == 1
    assert versions.torch == metadata.version("torch")
    model = f'device="cpu",dtype="{str(engine.dtype)[6:]}",fingerprint="{engine.fingerprint}"'
    assert metrics[f'deqlm_model_info{{{model},model="pieces",solver="broyden"}}'] == 1


def test_gauges(server):
    stubs = Stubs(server.channel)

    def act():
        stubs.score("It", session_id=stubs.create())

    change = moved(server, act)
    assert change['deqlm_sessions{model="pieces"}'] == 1
    assert change['deqlm_session_memory_bytes{model="pieces"}'] > 0
    assert change['deqlm_slots_used{model="pieces"}'] == 1
    assert 0 < change['deqlm_cache_usage_ratio{model="pieces"}'] < 1
    assert server.metrics()["process_resident_memory_bytes"] > 1e6
    assert server.metrics()['deqlm_num_requests_running{model="words"}'] == 0


@pytest.mark.parametrize("residual", [math.inf, math.nan])
def test_a_residual_that_is_not_finite_is_counted_apart(residual):
    metrics = Metrics()
    observer = metrics.observer("m")
    observer.began([residual, 0.5])
    observer.solved([Solved(3, residual, "nonfinite"), Solved(2, 0.25, "converged")])
    value = metrics.registry.get_sample_value
    labels = {"model": "m", "status": "nonfinite"}
    assert value("deqlm_unconverged_tokens_total", labels) == 1
    assert value("deqlm_nfe_per_token_count", {"model": "m"}) == 2
    for name, sum_ in (("deqlm_first_residual", 0.5), ("deqlm_token_residual", 0.25)):
        assert value(f"{name}_count", {"model": "m"}) == 1
        assert value(f"{name}_sum", {"model": "m"}) == sum_


def test_two_servers_count_for_themselves():
    one, other = Metrics(), Metrics()
    one.rejected("m", "QUEUE_FULL")
    labels = {"model": "m", "reason": "QUEUE_FULL"}
    assert one.registry.get_sample_value("deqlm_rejections_total", labels) == 1
    assert other.registry.get_sample_value("deqlm_rejections_total", labels) is None


def test_every_metric_is_documented_with_its_kind(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=60) as page:
        text = page.read().decode()
    shown = set(re.findall(r"^# TYPE (deqlm_\w+) (\w+)$", text, re.MULTILINE))
    document = DOCUMENT.read_text("utf-8")
    told = re.findall(r"^\| `(deqlm_\w+)` \| (\w+) \|", document, re.MULTILINE)
    assert len(told) == len(set(told))
    assert shown == set(told)


def test_every_word_of_a_label_is_documented(server):
    """Those that a server shows from its start, which are all that there are of most labels."""
    document = DOCUMENT.read_text("utf-8")
    rows = dict(re.findall(r"^\| `(deqlm_\w+)` \| (.*)$", document, re.MULTILINE))
    words = {"reason", "quota", "what", "outcome", "status", "operation", "by", "limit"}
    told = {
        (sample.partition("{")[0], value)
        for sample in server.metrics()
        for label, value in re.findall(r'(\w+)="([^"]*)"', sample)
        if label in words
    }
    assert len(told) > 30
    rows |= {
        f"{name}_{end}": row for name, row in rows.items() for end in ("bucket", "sum", "count")
    }
    assert {(name, value) for name, value in told if f"`{value}`" not in rows[name]} == set()
