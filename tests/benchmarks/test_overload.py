"""The overload benchmark in short: beyond its capacity a server goes on, and refuses the rest."""

import json

import pytest

from benchmarks import overload
from benchmarks.overload import Outcome


def test_the_figures_of_a_load():
    outcomes = [
        Outcome("OK", 0.5, 0.0),
        Outcome("OK", 3.0, 0.0),
        Outcome("RESOURCE_EXHAUSTED", 0.004, 0.0),
        Outcome("DEADLINE_EXCEEDED", 2.0, 0.0),
    ]
    found = overload.summary(outcomes, 10.0, 2.0)
    assert found["goodput_per_s"] == pytest.approx(0.1)
    assert (found["refused"], found["late"], found["other"]) == (1, 2, 0)
    assert found["refused_s"]["p99"] == 0.004


def test_three_times_the_capacity(tmp_path):
    out = tmp_path / "overload.json"
    assert overload.main(["--seconds", "5", "--loads", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    load = found["loads"]["3"]
    assert load["refused"] > 0
    assert load["other"] == 0
    # Coarse: other tests may have the machine meanwhile.
    assert load["goodput_per_s"] > 0.4 * found["capacity_per_s"]
