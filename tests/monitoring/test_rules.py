"""Rules and dashboard are well formed, and speak of metrics that there are."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cli.build import this_build
from scripts.dashboard.__main__ import TARGET, main
from server.metrics.counts import Metrics
from tests.monitoring.prometheus_server import FOLDER, TOOL, needs_prometheus

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
THRESHOLD = re.compile(r"\s(==|>|<)\s[\d.e+]+$")


def rules(name):
    """Those of a file."""
    content = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def promtool(*arguments):
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_promtool_accepts_them():
    files = [str(FOLDER / name) for name in ("recording.yml", "alerts.yml")]
    assert promtool("check", "rules", *files).count("SUCCESS") == 2
    promtool("check", "config", str(FOLDER / "prometheus.yml"))


@needs_prometheus
def test_alerts_fire_when_they_should_and_not_otherwise():
    promtool("test", "rules", str(FOLDER / "alerts_test.yml"))


def test_every_alert_is_tested_and_has_a_line_that_says_what_to_do():
    names = [rule["alert"] for rule in rules("alerts.yml")]
    assert len(names) == len(set(names)) > 20
    tests = (FOLDER / "alerts_test.yml").read_text("utf-8")
    assert sorted(set(re.findall(r'alertname="(\w+)"', tests))) == sorted(names)
    assert re.findall(r"^\| `(Deqlm\w+)` \| .{10,} \| .{20,} \|$", DOCUMENT, re.MULTILINE) == names


def test_every_recorded_series_is_documented():
    names = [rule["record"] for rule in rules("recording.yml")]
    assert re.findall(r"^\| `(\w+:deqlm_\w+:\w+)` \|", DOCUMENT, re.MULTILINE) == names


def test_alerts_end_with_their_threshold_and_say_whom_to_wake():
    for rule in rules("alerts.yml"):
        assert THRESHOLD.search(rule["expr"].strip()), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_the_dashboard_is_the_one_that_the_script_makes():
    assert main(["--check"]) == 0, "python -m scripts.dashboard writes it"


def known():
    """Names of all series."""
    suffixes = {
        "counter": ["_total"],
        "histogram": ["_bucket", "_sum", "_count"],
        "info": ["_info"],
    }
    metrics = Metrics()
    metrics.tell_build(this_build())
    families = metrics.registry.collect()
    made = {f.name + end for f in families for end in suffixes.get(f.type, [""])}
    return made | {rule["record"] for rule in rules("recording.yml")}


@pytest.mark.parametrize("place", ["dashboard", "recording.yml", "alerts.yml"])
def test_queries_name_what_there_is(place):
    if place == "dashboard":
        panels = json.loads(TARGET.read_text("utf-8"))["panels"]
        texts = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    else:
        texts = [rule["expr"] for rule in rules(place)]
    names = {name for text in texts for name in re.findall(r"[\w:]*deqlm_[\w:]+", text)}
    assert len(names) > 10
    assert names <= known()
