"""A real Prometheus scrapes a real server under load: every query returns something."""

import json
import math
import re

import grpc
import pytest
import trustme

from client.commands import top
from scripts.dashboard.__main__ import TARGET
from tests.monitoring.load import TRACE, Load
from tests.monitoring.prometheus_server import Prometheus, needs_prometheus
from tests.monitoring.test_rules import THRESHOLD
from tests.server.kills import RESIDENT_BYTES
from tests.server.security.certificates import issue
from tests.server.security.people import TOKENS, people, write
from tests.server.test_process import Process

pytestmark = needs_prometheus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def files(folder):
    return issue(folder, "server", trustme.CA(), "127.0.0.1")


@pytest.fixture(scope="module")
def server(folder, files, tiny_models):
    """A server that knows its callers, with little room; address of its calls and its metrics."""
    auth = write(
        folder / "auth.yaml",
        people(bob={"quotas": {"requests_per_minute": 5}}),
    )
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "0"),
        *("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--auth-file", str(auth)),
        *("--session-store", f"sqlite:{folder / 'sessions'}"),
        *("--resident-bytes", str(RESIDENT_BYTES), "--resident-idle-s", "1"),
        *("--max-running", "4", "--max-queue", "6", "--prefix-cache", "64"),
        *("--overload-tol", "0.1", "--overload-queue", "1"),
    )
    try:
        yield process.wait_ready()
    finally:
        process.process.terminate()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def load(server, files):
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
    with grpc.secure_channel(server[2], credentials) as channel:
        load = Load(channel)
        yield load
        load.end()
        assert load.errors == []


@pytest.fixture(scope="module")
def prometheus(folder, files, server, load):
    prometheus = Prometheus(
        folder,
        {
            "scheme": "https",
            "tls_config": {"ca_file": str(files.ca)},
            "authorization": {"credentials": TOKENS["mon"]},
            "static_configs": [{"targets": [re.search(r"https://([^/]+)/", server[3])[1]]}],
        },
    )
    yield prometheus
    prometheus.stop()


def unanswered(prometheus, queries):
    """Those that do not have a number by the end of a minute."""
    left = set(queries)

    def is_done():
        for query in sorted(left):
            if any(map(math.isfinite, prometheus.values(query))):
                left.discard(query)
        return not left

    try:
        prometheus.wait(is_done)
    except AssertionError:
        pass
    return left


def test_every_query_of_the_dashboard_returns_data(prometheus):
    panels = json.loads(TARGET.read_text("utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(queries) > 80
    filled = {"$__rate_interval": "30s", "$instance": ".*", "$model": ".*"}
    for name, value in filled.items():
        queries = [query.replace(name, value) for query in queries]
    assert not any("$" in query for query in queries)
    assert unanswered(prometheus, queries) == set()


def test_every_rule_is_evaluated_and_returns_data(prometheus, load):
    rules = [r for group in prometheus.ask("rules")["groups"] for r in group["rules"]]
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    alerts = [rule["query"].strip() for rule in rules if rule["type"] == "alerting"]
    assert (len(recorded) > 15, len(alerts) > 20) == (True, True)
    assert unanswered(prometheus, recorded) == set()
    # How far an alert's value is from its threshold can be told, whether or not it fires.
    assert unanswered(prometheus, [THRESHOLD.sub("", alert) for alert in alerts]) == set()
    rules = [r for group in prometheus.ask("rules")["groups"] for r in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert load.codes >= {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNAUTHENTICATED"}


def test_alerts_fire_for_what_the_load_does(prometheus):
    """It asks for more than may wait, so calls are refused."""
    refused = "job:deqlm_refused:ratio_rate5m > 0.05"
    prometheus.wait(lambda: prometheus.values(refused))
    prometheus.wait(
        lambda: prometheus.values('ALERTS{alertname="DeqlmCallsRefused",alertstate="pending"}')
    )


def test_exemplars_reach_prometheus(prometheus):
    name = "deqlm_time_to_first_token_seconds_bucket"

    def traces():
        found = prometheus.ask("query_exemplars", query=name, start="0", end="9999999999")
        return {e["labels"]["trace_id"] for series in found for e in series["exemplars"]}

    prometheus.wait(lambda: traces() == {TRACE})


def test_a_target_has_no_more_series_than_its_names_allow(prometheus):
    """However many calls, callers and sessions there were."""
    most = 'max_over_time(scrape_samples_post_metric_relabeling{job="deqlm"}[5m])'
    assert 300 < prometheus.values(most)[0] < 1500


def test_top_by_tls_with_a_token(server, files, load, folder, capsys):
    token = folder / "token"
    token.write_text(TOKENS["mon"])
    arguments = ["--once", "--metrics", server[3], "--tls-ca", str(files.ca), "--interval-s", "2"]
    assert top.main([*arguments, "--token-file", str(token)], "deqlm top") == 0
    assert re.search(r"^refused/s +[1-9.]", capsys.readouterr().out, re.MULTILINE)
    assert top.main(arguments, "deqlm top") == 1
    assert "with a token that has the right metrics" in capsys.readouterr().err
