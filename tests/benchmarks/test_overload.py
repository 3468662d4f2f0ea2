"""The overload benchmark in short: beyond its capacity a server goes on, and refuses the rest."""

import json

import pytest

from benchmarks import overload, overload_report
from benchmarks.overload_load import Outcome, Told

INF = float("inf")


def told(*outcomes, lags=(0.0,)):
    return Told(10.0, tuple(Outcome(code, seconds) for code, seconds in outcomes), lags, 1.0)


def test_the_figures_of_a_load():
    one = told(("OK", 0.5), ("OK", 3.0), ("RESOURCE_EXHAUSTED", 0.004))
    two = told(("DEADLINE_EXCEEDED", 2.0), ("UNAVAILABLE", 0.1), lags=(0.2,))
    found = overload_report.summary([one, two], 10.0, 2.0)
    assert found["goodput_per_s"] == pytest.approx(0.1)
    assert (found["refused"], found["late"], found["other"]) == (1, 2, 1)
    assert found["accepted_in_time"] == pytest.approx(1 / 3)
    assert found["refused_s"]["p99"] == 0.004
    assert found["lag_of_callers_s"]["p99"] == 0.2
    assert found["cores_of_callers"] == pytest.approx(0.2)


def test_what_a_process_tells_comes_through():
    one = told(("OK", 0.5), ("OK", 3.0))
    assert Told.from_json(one.to_json()) == one


def test_percentiles_of_the_refusals_in_between():
    before = {0.001: 5.0, 0.01: 10.0, 0.02: 10.0, INF: 10.0}
    after = {0.001: 65.0, 0.01: 108.0, 0.02: 109.0, INF: 110.0}
    found = overload_report.refused_between(before, after)
    assert found["count"] == 100
    assert (found["p50_at_most"], found["p90_at_most"], found["p99_at_most"]) == (0.001, 0.01, 0.02)
    assert found["within_10_ms"] == pytest.approx(0.98)
    assert overload_report.refused_between(after, after) is None


def test_the_share_of_the_goodput_that_is_left():
    def load(goodput):
        figures = {"calls": 12, "refused": 1, "other": 1, "late": 2}
        return {"goodput_per_s": goodput, **figures}

    rounds = [{"1": load(20.0), "3": load(g)} for g in (10.0, 16.0, 30.0)]
    found = overload_report.pooled(rounds)
    assert found["goodput_kept"] == pytest.approx(0.8)
    assert found["loads"]["3"] == {"goodput_per_s": [10.0, 16.0, 30.0], "accepted_in_time": 0.8}


def test_three_times_the_capacity(tmp_path):
    out = tmp_path / "overload.json"
    arguments = ["--seconds", "5", "--rounds", "1", "--loads", "3", "--out", str(out)]
    assert overload.main(arguments) == 0
    found = json.loads(out.read_text())
    load = found["rounds"][0]["3"]
    assert load["refused"] > 0
    assert load["refused_by_server_s"]["count"] == load["refused"]
    assert load["other"] == 0
    # Coarse: other tests may have the machine meanwhile.
    assert load["goodput_per_s"] > 0.4 * found["capacity_per_s"]
