"""Metrics move, are named as documented, and belong to one server."""

import re
from pathlib import Path

import grpc
import pytest

from deqlm.v1 import common_pb2, generation_pb2
from server.engine.solve import Solved
from server.metrics.counts import Metrics
from tests.server.calls import Stubs, to_input

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "server.md"


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
            stubs.score([7] * 3000, solver=solver, timeout=0.2)
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


def test_a_residual_that_is_not_finite_is_counted():
    metrics = Metrics()
    metrics.observer("m").solved([Solved(3, float("inf"), "nonfinite")])
    value = metrics.registry.get_sample_value
    labels = {"model": "m", "status": "nonfinite"}
    assert value("deqlm_unconverged_tokens_total", labels) == 1
    assert value("deqlm_token_residual_count", {"model": "m"}) == 1


def test_two_servers_count_for_themselves():
    one, other = Metrics(), Metrics()
    one.rejected("m", "QUEUE_FULL")
    labels = {"model": "m", "reason": "QUEUE_FULL"}
    assert one.registry.get_sample_value("deqlm_rejections_total", labels) == 1
    assert other.registry.get_sample_value("deqlm_rejections_total", labels) is None


def test_every_metric_is_documented():
    families = Metrics().registry.collect()
    names = {f.name + "_total" if f.type == "counter" else f.name for f in families}
    ours = {name for name in names if name.startswith("deqlm_")}
    documented = set(re.findall(r"^\| `(deqlm_\w+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    assert ours == documented
