"""``deqlm serve`` as a process: exit codes and messages."""

import gc
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from server.__main__ import main, settle
from tests.server.calls import ENDLESS, TIMEOUT_S, Stubs

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"serving (\S+) at (\S+), metrics (\S+)")


class Process:
    """A server process, and the lines that it logs."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "--threads", "1", *arguments],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            self._news.put(line)
        self._news.put(None)

    def wait_ready(self) -> re.Match[str]:
        """The line that tells where it serves."""
        return self.wait_line(READY)

    def wait_line(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """A line that it logs."""
        while (line := self._news.get(timeout=100)) is not None:
            if found := pattern.search(line):
                return found
        raise AssertionError("it ended: " + "".join(self.lines))

    def wait(self) -> int:
        """Exit code; a server that ends in order has looked whether everything adds up."""
        code = self.process.wait(timeout=100)
        self._thread.join()
        self.process.stderr.close()
        assert not [line for line in self.lines if "invariant broken" in line]
        return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_an_orderly_way(tiny_models, number):
    process = Process("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0")
    try:
        ready = process.wait_ready()
        assert ready[1] == "tiny"
        with grpc.insecure_channel(ready[2]) as channel:
            assert Stubs(channel).score("the of").model == "tiny"
    finally:
        process.process.send_signal(number)
    assert process.wait() == 0
    text = "".join(process.lines)
    loaded = (
        r"loaded model tiny: [0-9a-f]{16}, 3,991 parameters, float(16|32) on cpu \(threads: 1\), "
    )
    assert re.search(loaded + "solves begin at zeros, in", text)
    began = (
        r"deqlm 0\.1\.0 \((unknown|[0-9a-f]{12}(-dirty)?)\), torch 2\.\S+, Python 3\.\S+, models on"
    )
    assert re.search(began, text)
    assert "stopped" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tiny_models, number):
    process = Process("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0")
    try:
        ready = process.wait_ready()
        with grpc.insecure_channel(ready[2]) as channel:
            call = Stubs(channel).begin_score("the of " * 1000, solver=ENDLESS)
            # Answered after the call above, which therefore runs.
            Stubs(channel).score("the of", timeout=TIMEOUT_S)
            process.process.send_signal(number)
            process.wait_line(re.compile("stopping"))
            process.process.send_signal(number)
            assert process.wait() == -number
            assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
    finally:
        process.process.kill()
        process.process.wait()
    assert "Traceback" not in "".join(process.lines)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_request_by_signal_amid_the_start_does_not_end_it(tiny_models, tmp_path, number):
    path = tmp_path / "auth.yaml"
    path.write_text("principals: {ann: {rights: [score]}}")
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0"),
        *("--auth-file", str(path)),
    )
    try:
        process.wait_line(re.compile("deqlm .*, torch "))
        process.process.send_signal(number)
        process.wait_ready()
    finally:
        process.process.terminate()
    assert process.wait() == 0


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments], "deqlm serve")
    return code, capsys.readouterr().err


@pytest.fixture
def broken(tmp_path, tiny_models):
    """A copy of a checkpoint, to be broken."""
    for file in (tiny_models / "words").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


PORTS = ("--port", 0, "--metrics-port", -1, "--log-level", "error")


def test_a_missing_checkpoint(capsys, tmp_path):
    code, told = run(capsys, "--model", f"a={tmp_path / 'no'}", *PORTS)
    assert code == 1
    assert told == f"deqlm serve: model a must be a checkpoint folder, got {tmp_path / 'no'}\n"


@pytest.mark.parametrize(
    ("file", "problem"),
    [("model.safetensors", "model.safetensors"), ("config.json", "config.json")],
)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_checkpoint(capsys, broken, file, problem, how):
    path = broken / file
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    code, told = run(capsys, "--model", f"a={broken}", *PORTS)
    assert code == 1
    assert told.startswith("deqlm serve: ")
    assert problem in told
    assert told.count("\n") == 1, "one line"


def test_a_checkpoint_without_tokenizer(capsys, broken):
    (broken / "vocab.txt").unlink()
    code, told = run(capsys, "--model", f"a={broken}", *PORTS)
    assert (code, told) == (
        1,
        f"deqlm serve: checkpoint {broken} has no vocab.txt or tokenizer.model\n",
    )


def test_a_vocabulary_of_the_wrong_size(capsys, broken):
    with (broken / "vocab.txt").open("a") as file:
        file.write("zebra\n")
    code, told = run(capsys, "--model", f"a={broken}", *PORTS)
    assert code == 1
    assert "vocabulary has 23 entries, config n_token is 22" in told


def test_a_port_in_use(capsys, tiny_models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = run(
            capsys, "--model", f"a={tiny_models / 'words'}", *PORTS[2:], "--port", port
        )
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("--port", "TAKEN"), 1, "cannot listen on 127.0.0.1:TAKEN: the port is in use"),
        (("--host", "0.0.0.0"), 2, "host must be of this machine alone"),
        (("--model", "b=/nowhere"), 1, "model b must be a checkpoint folder, got /nowhere"),
    ],
)
def test_a_log_for_machines_has_no_other_lines(tiny_models, arguments, code, problem):
    """Why there is no server is an entry; what gRPC's core says of a taken port is left out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = Process(
            *("--log-format", "json", "--model", f"a={tiny_models / 'words'}"),
            *("--metrics-port", "-1"),
            *(argument.replace("TAKEN", port) for argument in arguments),
        )
        assert process.wait() == code
    entries = [json.loads(line) for line in process.lines]
    assert entries[-1]["message"].startswith(problem.replace("TAKEN", port))
    assert [entry["level"] for entry in entries][-1] == "critical"


def test_an_impossible_value(capsys):
    with pytest.raises(SystemExit) as caught:
        run(capsys, "--window", 0)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("deqlm serve: window must be at least 1, got 0; `")


def test_more_memory_than_there_is(capsys, broken):
    config = broken / "config.json"
    config.write_text(config.read_text().replace('"mem_len": 16', '"mem_len": 2000000000'))
    code, told = run(capsys, "--model", f"a={broken}", *PORTS)
    assert code == 1
    assert "model a must fit into the memory of cpu" in told
    assert "max_sessions = 256" in told
    assert told.count("\n") == 1, "one line"


def test_a_device_that_is_not_there(capsys, tiny_models):
    code, told = run(capsys, "--model", f"a={tiny_models / 'words'}", *PORTS, "--device", "cuda:99")
    assert code == 1
    assert "device must be c" in told
    assert told.endswith("got cuda:99\n")


def test_a_served_process_spares_the_collector_what_is_there_for_good():
    gc.unfreeze()
    try:
        settle()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
