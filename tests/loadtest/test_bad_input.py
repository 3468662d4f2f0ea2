"""What cannot be carried out is told in a line, and soon."""

import json
import lzma
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from loadtest.records import RecordError, read_records
from loadtest.results import Result
from loadtest.traces import read_trace
from tests.loadtest.made import lines, record, stage_result, write_run
from tests.server.test_process import Process

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--load.rates", "0"], "load.rates must be finite numbers above 0, got 0"),
        (["--load.rates", "-3"], "load.rates must be finite numbers above 0, got -3"),
        (["--load.rates", "nan"], "load.rates must be finite numbers above 0, got nan"),
        (["--load.rates", "inf"], "load.rates must be finite numbers above 0, got inf"),
        (["--load.rates", "1e9"], "1e9|1e\\+09 a second for 23 s are 2.3e\\+10 requests"),
        (["--load.rates", "x"], "--load.rates must be values with commas"),
        (["--load.pattern", "trickle"], "--load.pattern must be poisson, constant"),
        (["--load.pattern", "closed", "--load.clients", "none"], "load.clients must not be empty"),
        (["--load.pattern", "closed", "--load.clients", "0"], r"clients must be in \[1, 10000\]"),
        (["--load.times", "none"], "load.times must not be empty"),
        (["--load.pattern", "trace"], "load.trace must name a file with pattern trace"),
        (["--load.seconds", "0"], r"load.seconds must be in \[0.1, 86400\], got 0"),
        (["--mix.score", "-1"], r"mix.score must be in \[0, 1e\+09\], got -1"),
        ([f"--mix.{k}=0" for k in "score stream generate session fork cancel".split()],
         "mix: one of score, .* must be above 0, got an empty mix"),
        (["--size.score", "huge"], "size.score must be one of fixed:N"),
        (["--processes", "0"], r"processes must be in \[1, 64\], got 0"),
        (["--metrics", "ftp://x"], "metrics must be auto, none, HOST:PORT or a URL"),
        (["--objective.share", "2"], r"objective.share must be in \[0, 1\], got 2"),
        (["--text", "/nowhere/text"], "text cannot be read from /nowhere/text"),
        (["--text", "/dev/zero"], "text must be at most 67108864 bytes long, /dev/zero has more"),
        (["--address", ""], r"address must be HOST:PORT with a port in \[1, 65535\], got ''"),
        (["--token-file", "/nowhere/token"], "token_file cannot be read from /nowhere/token"),
        (["--tls-ca", "/nowhere/ca"], "tls.ca cannot be read from /nowhere/ca"),
        (["--load.pattern", "trace", "--load.trace", "/nowhere/t"], "/nowhere/t cannot be read"),
    ],
)  # fmt: skip
def test_impossible_options(loadtest, tmp_path, flags, problem):
    code, _, told = loadtest("run", "--out", tmp_path / "run", "--address", "127.0.0.1:1", *flags)
    assert re.search(problem, told), told
    assert code == 2
    assert not list(tmp_path.glob("run/*"))


def test_a_text_that_is_cut_off_or_endless_once_unpacked(loadtest, tmp_path):
    path = tmp_path / "text.xz"
    for data, problem in (
        (lzma.compress(b"a word " * 9999)[:-30], "is damaged or not UTF-8"),
        (lzma.compress(bytes((1 << 26) + 1)), "text must be at most 67108864 bytes long"),
    ):
        path.write_bytes(data)
        code, _, told = loadtest("run", "--text", path, "--address", "127.0.0.1:1")
        assert problem in told
        assert code == 2


def test_nobody_listens(loadtest, tmp_path):
    began = time.monotonic()
    code, _, told = loadtest("run", "--address", "127.0.0.1:1", "--out", tmp_path / "run")
    assert code == 1
    assert "no server answers at 127.0.0.1:1" in told
    assert time.monotonic() - began < 30


def test_a_folder_of_its_own_is_not_left_behind_empty(loadtest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loadtest("run", "--address", "127.0.0.1:1")[0] == 1
    assert not list(tmp_path.iterdir())


def test_the_environment_names_the_metrics(loadtest, live_server, tmp_path, monkeypatch):
    monkeypatch.setenv("DEQLM_METRICS", "127.0.0.1:1")
    flags = ("--address", live_server.address, "--out", tmp_path / "run")
    code, _, told = loadtest("run", *flags)
    assert code == 1
    assert "nothing answers at http://127.0.0.1:1/metrics" in told


def test_metrics_that_cannot_be_read(loadtest, live_server, tmp_path):
    flags = ("--address", live_server.address, "--out", tmp_path / "run")
    code, _, told = loadtest("run", *flags, "--metrics", "http://127.0.0.1:1/metrics")
    assert code == 1
    assert "metrics cannot be read: nothing answers at http://127.0.0.1:1/metrics" in told
    assert "--metrics none" in told


def test_a_folder_that_holds_something(loadtest, tmp_path):
    (tmp_path / "precious").write_text("x")
    code, _, told = loadtest("run", "--out", tmp_path, "--address", "127.0.0.1:1")
    assert code == 2
    assert "out must be a new or empty folder" in told


def test_a_model_that_is_not_there(loadtest, live_server, tmp_path):
    flags = ("--address", live_server.address, "--out", tmp_path / "run", "--model", "nobody")
    code, _, told = loadtest("run", *flags)
    assert code == 1
    assert "NOT_FOUND" in told and "nobody" in told


def test_commands_that_there_are_not(loadtest):
    assert loadtest("sing")[0] == 2
    assert loadtest()[0] == 2
    assert loadtest("--help")[0] == 0
    assert loadtest("report")[0] == 2
    assert loadtest("report", "/nowhere")[0] == 1


@pytest.fixture
def process(tiny_models):
    it = Process(f"--model=tiny={tiny_models / 'pieces'}", "--port=0", "--metrics-port=0")
    yield it
    it.process.kill()
    it.wait()


SMALL = ["--size.score", "uniform:3:8", "--load.warmup-s", "0", "--timeout-s", "5"]


def test_a_server_that_dies_midway(loadtest, process, tmp_path):
    ready = process.wait_ready()
    out = tmp_path / "run"

    def kill_amid():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if any('"status":"OK"' in path.read_text() for path in out.glob("requests-*.jsonl")):
                break
            time.sleep(0.05)
        process.process.kill()

    killer = threading.Thread(target=kill_amid)
    killer.start()
    began = time.monotonic()
    code, told, progress = loadtest(
        "run", "--address", ready[2], "--metrics", ready[3], "--out", out, *SMALL,
        "--load.rates", "30,30", "--load.seconds", "600",
    )  # fmt: skip
    killer.join()
    assert code == 1
    assert "the server is gone" in progress or "metrics cannot be read" in progress
    assert time.monotonic() - began < 100
    (stage,) = lines(out, "stages.jsonl")
    assert stage["ended_early"]
    records = lines(out, "requests-*.jsonl")
    assert {"OK", "UNAVAILABLE"} <= {record["status"] for record in records}
    assert "OK" in told
    assert loadtest("report", out)[0] == 1


def test_a_sending_process_that_dies(loadtest, live_server, tmp_path):
    out = tmp_path / "run"

    def kill_one():
        until = time.monotonic() + 60
        while not lines(out, "requests-1.jsonl") and time.monotonic() < until:
            time.sleep(0.05)
        (one, *_) = [
            child
            for child in psutil.Process().children(recursive=True)
            if "loadtest.worker" in child.cmdline()
        ]
        one.kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    code, told, progress = loadtest(
        "run", "--address", live_server.address, "--metrics", "none", "--out", out, *SMALL,
        "--load.rates", "10", "--load.seconds", "600",
    )  # fmt: skip
    killer.join()
    assert code == 1
    assert "a sending process ended with code -9" in progress
    assert "OK" in told


def test_a_disk_that_is_full(live_server, tmp_path):
    """Files may not grow beyond a few requests: the run ends and says so."""
    command = [sys.executable, "-m", "cli", "loadtest", "run", "--address", live_server.address]
    command += [
        "--metrics",
        "none",
        "--out",
        tmp_path / "run",
        *SMALL,
        "--load.rates",
        "30",
        "--load.seconds",
        "600",
    ]
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "limited", *command]
    done = subprocess.run(
        limited, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done
    assert "a sending process failed: OSError: [Errno 27] File too large" in done.stderr


@pytest.mark.slow
def test_a_server_that_hangs(loadtest, process, tmp_path):
    """It takes connections and answers nothing: the run ends when it has not told its health."""
    ready = process.wait_ready()
    out = tmp_path / "run"

    def stop_amid():
        until = time.monotonic() + 60
        while not lines(out, "requests-*.jsonl") and time.monotonic() < until:
            time.sleep(0.05)
        process.process.send_signal(signal.SIGSTOP)

    stopper = threading.Thread(target=stop_amid)
    stopper.start()
    code, _, progress = loadtest(
        "run", "--address", ready[2], "--metrics", "none", "--out", out, *SMALL,
        "--load.rates", "10", "--load.seconds", "600",
    )  # fmt: skip
    stopper.join()
    assert code == 1
    assert "the server has not told its health in 20 s" in progress


def test_an_interrupt_keeps_what_there_is(live_server, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "cli", "loadtest", "run", "--address", live_server.address]
    command += ["--metrics", "none", "--out", str(out), "--load.rates", "20", *SMALL]
    run = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    while not any(path.stat().st_size for path in out.glob("requests-*.jsonl")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=100)
    assert run.returncode == 130
    assert f"interrupted; `deqlm loadtest report {out}` tells" in told.decode()
    (stage,) = lines(out, "stages.jsonl")
    assert stage["ended_early"] == "it was interrupted"
    # The sending processes have ended, too: their records have whole lines.
    for path in out.glob("requests-*.jsonl"):
        assert path.read_text().endswith("\n")


def test_a_rate_that_the_client_cannot_send_is_told(loadtest, live_server, tmp_path):
    """It ends in bounded time, and what was not sent in time is counted."""
    out = tmp_path / "run"
    code, told, progress = loadtest(
        "run", "--address", live_server.address, "--metrics", "none", "--out", out, *SMALL,
        "--load.rates", "4000", "--load.seconds", "1", "--timeout-s", "2",
        "--most-in-flight", "20", "--mix.session=0", "--mix.fork=0",
    )  # fmt: skip
    assert code == 0, told + progress
    assert "DROPPED (TOO_MANY_IN_FLIGHT)" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [("stage", "x"), ("done_s", None), ("sent_s", "x"), ("status", 5), ("times_s", ["x"])],
)
def test_a_record_with_something_else_in_it(tmp_path, name, value):
    good = json.loads(record().to_line())
    path = tmp_path / "requests-0.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | {name: value})}\n")
    with pytest.raises(RecordError, match=f"requests-0.jsonl, line 2: is no record: {name} must"):
        read_records(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("name", ["at_s", "done_s", "sent_s", "times_s"])
def test_a_time_that_nobody_can_have_measured(tmp_path, name, value):
    odd = json.loads(record().to_line())
    place = odd["plan"] if name == "at_s" else odd
    place[name] = [value] if name == "times_s" else value
    (tmp_path / "requests-0.jsonl").write_text(json.dumps(odd) + "\n")
    with pytest.raises(RecordError, match="line 1: is no record: times must be at most"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("stages.jsonl", {"label": None}, "a stage is damaged: label must be text, got None"),
        ("stages.jsonl", {"rate": "x"}, "a stage is damaged: rate must be a number, got 'x'"),
        ("stages.jsonl", {"seconds": math.nan}, "seconds must be a number, got nan"),
        ("stages.jsonl", {"run_s": []}, r"run_s must be a number, got \[\]"),
        (
            "stages.jsonl",
            {"workers": [{"loop_lag_s": 1}]},
            r"\[0\].loop_lag_s must be an obj",
        ),
        ("stages.jsonl", {"workers": None}, "workers must be a list, got None"),
        ("stages.jsonl", {"counts": [{"name": 5}]}, r"counts\[0\].name must be str, got 5"),
        ("run.json", {"server": []}, r"server must be an object, got \[\]"),
        ("run.json", {"server": {"n_parameters": "x"}}, "n_parameters must be int . float, got"),
        ("run.json", {"settings": {"run": None}}, "settings are damaged"),
        ("run.json", {"settings": None}, "settings are damaged"),
        ("server.jsonl", {"memory": "x"}, "line 1: is no sample: it must have numbers"),
        ("server.jsonl", {"run_s": None}, "line 1: is no sample: it must have numbers"),
    ],
)
def test_a_damaged_run(tmp_path, file, change, problem):
    folder = write_run(tmp_path / "run", stage_result(record()))
    given = {"server.jsonl": [{"run_s": 1.0, "memory": 1}]}.get(file) or lines(folder, file)
    (folder / file).write_text(json.dumps(given[0] | change) + "\n")
    with pytest.raises(RecordError, match=f"{file}.*{problem}"):
        Result.read(folder)


def test_samples_that_cannot_be_drawn_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", stage_result(record()))
    samples = [{"run_s": 1.0, "a": math.nan, "b": 2.0}, {"run_s": math.inf, "b": 2.0}]
    (folder / "server.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    assert Result.read(folder).samples == [{"run_s": 1.0, "b": 2.0}]


def test_a_trace_that_lasts_for_ages(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps({"at_s": at_s, "kind": "score", "words": 5}) for at_s in (1e12, 1.0)]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=r"must not last longer than 604800 s, .* is 1e\+12"):
        read_trace(path)


def test_nesting_without_end(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(RecordError, match="line 1: is no JSON"):
        read_trace(path)
