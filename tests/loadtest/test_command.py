"""``deqlm loadtest`` against a real server, in short."""

import json
import threading

import pytest

from client.sync import Client
from tests.loadtest.made import lines
from tests.server.live import LiveServer

SHORT = ("--load.seconds", "1", "--load.warmup-s", "0.2", "--size.tokens", "uniform:2:6")
SMALL = ("--size.score", "uniform:3:8", "--size.stream", "uniform:4:9", "--size.session", "fixed:3")


@pytest.fixture(scope="module")
def target(tiny_models):
    """Flags that name a server of these tests' own, whose counts nobody else moves."""
    server = LiveServer(tiny_models, max_sessions=64)
    yield _flags(server)
    server.close()


def _flags(server):
    flags = ("--address", server.address)
    return (*flags, "--metrics", f"http://{server.metrics_address}/metrics", *SHORT, *SMALL)


def test_an_open_loop(loadtest, target, tmp_path):
    out = tmp_path / "run"
    code, told, progress = loadtest("run", *target, "--load.rates", "15", "--out", out)
    assert code == 0, told + progress
    assert "agree with the server's metrics, in 1 stage\n" in told
    assert "15/s" in told and "client: sent at most" in told and "perplexity" in told
    records = lines(out, "requests-*.jsonl")
    assert {one["process"] for one in records} == {0, 1}
    assert sorted(one["plan"]["number"] for one in records) == list(range(len(records)))
    assert "OK" in {one["status"] for one in records}
    (stage,) = lines(out, "stages.jsonl")
    assert all(count["agrees"] for count in stage["counts"])
    assert len(stage["workers"]) == 2


def test_a_sweep_of_multiples_of_the_capacity(loadtest, target, tmp_path):
    out = tmp_path / "run"
    code, told, progress = loadtest(
        "run", *target, "--load.times", "0.3,3", "--load.capacity-clients", "4", "--out", out,
        "--mix.cancel", "0", "--timeout-s", "3", "--load.seconds", "2",
    )  # fmt: skip
    assert code == 0, told + progress
    assert "0.3 × capacity" in told and "3 × capacity" in told
    assert "capacity: " in progress


@pytest.mark.parametrize("pattern", ["closed", "bursts"])
def test_other_patterns(loadtest, target, tmp_path, pattern):
    more = ("--load.clients", "3") if pattern == "closed" else ("--load.rates", "12")
    out = tmp_path / "run"
    code, told, progress = loadtest(
        "run", *target, "--load.pattern", pattern, *more, "--out", out, "--load.burst", "4"
    )
    assert code == 0, told + progress
    assert ("closed loop" in told) == (pattern == "closed")


def test_a_run_is_a_trace_for_another(loadtest, target, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert loadtest("run", *target, "--load.rates", "10", "--out", first)[0] == 0
    code, told, progress = loadtest(
        "run", *target, "--load.pattern", "trace", "--load.trace", first, "--out", second,
        "--load.speeds", "2",
    )  # fmt: skip
    assert code == 0, told + progress
    kinds = [
        sorted(one["plan"]["kind"] for one in lines(run, "requests-*")) for run in (first, second)
    ]
    assert kinds[0] == kinds[1]


def test_objectives_decide_the_exit_code(loadtest, target, tmp_path):
    out = tmp_path / "run"
    flags = ("--objective.score-s", "1e-6", "--objective.share", "0.5")
    code, told, progress = loadtest("run", *target, "--load.rates", "10", "--out", out, *flags)
    assert code == 3, told + progress
    assert "FAILED: 10/s: " in progress
    assert loadtest("report", out)[0] == 3
    assert loadtest("report", out, "--objective.score-s", "60", "--objective.share", "0.5")[0] == 0


def test_calls_of_somebody_else_show_in_the_counts(loadtest, target, tmp_path):
    stop = threading.Event()

    def disturb():
        with Client(target[1]) as client:
            while not stop.is_set():
                client.score("Somebody else.")

    other = threading.Thread(target=disturb)
    other.start()
    try:
        code, told, progress = loadtest(
            "run", *target, "--load.rates", "10", "--out", tmp_path / "run"
        )
    finally:
        stop.set()
        other.join()
    assert code == 3, told + progress
    assert "Score answered: the server counted" in progress


def test_texts_that_the_server_has_solved_before_are_told(loadtest, tiny_models, tmp_path):
    """The same seed again measures what the server keeps, and not what it can do."""
    server = LiveServer(tiny_models, prefix_cache=16384)
    flags = (*_flags(server), "--load.rates", "15", "--seed", "77", "--size.score", "fixed:30")
    codes, told = [], []
    try:
        for name in ("before", "after"):
            code, out, _ = loadtest("run", *flags, "--out", tmp_path / name)
            codes.append(code)
            told.append(out)
    finally:
        server.close()
    assert codes == [0, 0]
    assert "took no call of f" not in told[0]
    assert "took no call of f, as the server had solved what began alike" in told[1]
    _, _, differs = loadtest("compare", tmp_path / "before", tmp_path / "after")
    assert "differs: 15/s: " in differs and "settings.run.out" not in differs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_past_saturation(loadtest, target, tmp_path):
    """What overload does must show: answers level off, and latency and failures grow."""
    out = tmp_path / "run"
    code, told, progress = loadtest(
        "run", *target, "--load.times", "0.3,1,4", "--load.seconds", "8", "--out", out,
        "--timeout-s", "2", "--repeats", "2", "--owners", "3", "--processes", "3",
    )  # fmt: skip
    assert code == 0, told + progress
    figures = {one["label"]: one for one in json.loads((out / "figures.json").read_text())}
    low, high = figures["0.3 × capacity"], figures["4 × capacity"]
    assert len(low["repeats"]) == len(high["repeats"]) == 2
    assert high["load"] > 5 * low["load"]
    assert high["seconds"]["all, whole"]["p50"] > low["seconds"]["all, whole"]["p50"]
    assert high["repeats"][0]["good_share"] < low["repeats"][0]["good_share"]
    assert high["repeats"][0]["failed_share"] > 0.1
    answered = [one["answered_per_s"] for one in high["repeats"]]
    assert max(answered) < 0.8 * high["load"]
    code, told, _ = loadtest("compare", out, out)
    assert code == 0 and "0 of " in told
