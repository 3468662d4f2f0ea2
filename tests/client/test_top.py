"""`deqlm top` against real servers, and against what is none."""

import json
import math
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import trustme
from rich.console import Console

from client.commands import top
from client.metrics_page import Page, PageError, fetch, parse, read_place
from client.top.figures import figures
from client.top.view import view
from tests.server.calls import Stubs
from tests.server.security.certificates import issue, server_options
from tests.server.test_process import ROOT, Process

DEADLINE_S = 60.0
PAGE = """\
# TYPE deqlm_ready gauge
deqlm_ready 1.0
process_start_time_seconds {start}
process_cpu_seconds_total {cpu}
process_resident_memory_bytes 2.5e8
deqlm_store_up 1.0
deqlm_store_sessions 2.0
deqlm_store_bytes 4096.0
deqlm_build_info{{version="1.2",revision="abc"}} 1.0
deqlm_calls_running{{method="Generate"}} 3.0
deqlm_calls_running{{method="Score"}} 1.0
deqlm_engine_up{{model="m"}} 1.0
deqlm_limit{{limit="max_sessions",model="m"}} 10.0
deqlm_sessions{{model="m"}} 4.0
deqlm_generation_tokens_total{{model="m"}} {tokens}
deqlm_iteration_tokens_sum{{model="m"}} {rows}
deqlm_iteration_tokens_count{{model="m"}} {calls}
deqlm_inter_token_latency_seconds_bucket{{le="0.1",model="m"}} {calls}
deqlm_inter_token_latency_seconds_bucket{{le="0.2",model="m"}} {tokens}
deqlm_inter_token_latency_seconds_bucket{{le="+Inf",model="m"}} {tokens}
"""
HERE = read_place("127.0.0.1")


def page(instant, **values):
    text = PAGE.format(**{"start": 1000.0, "cpu": 0, "tokens": 0, "rows": 0, "calls": 0} | values)
    return Page(instant, parse(text.encode(), HERE))


def shown(told, *, width=80, **more):
    """What the view of figures is on so many columns."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(view(told, place="h:1", clock="12:00:00", history=[1.0, 2.0], **more))
    return capture.get()


class TestFigures:
    def test_they_are_of_the_time_between_two_looks(self):
        told = figures(
            page(10.0, cpu=5, tokens=100, rows=40, calls=50),
            page(14.0, cpu=7, tokens=300, rows=640, calls=150),
            wall=1060.0,
        )
        assert (told.up_s, told.cores, told.calls, told.streams) == (60.0, 0.5, 4, 3)
        (model,) = told.models
        assert model.generated_per_s == 50.0
        assert model.rows == 6.0
        assert (model.sessions, model.max_sessions) == (4, 10)
        # Half of 200 values are up to 0.1 s, the others up to 0.2 s.
        assert model.between_tokens_s == pytest.approx((0.1, 0.198))
        assert math.isnan(model.calls_per_token)

    def test_a_server_that_started_anew_counts_from_its_start(self):
        before = page(10.0, tokens=1000)
        told = figures(before, page(40.0, start=1060.0, tokens=50), wall=1070.0)
        assert told.models[0].generated_per_s == 5.0

    def test_where_no_start_is_told_what_falls_counts_as_nothing(self):
        pages = [page(instant, tokens=tokens) for instant, tokens in ((0.0, 9), (1.0, 4))]
        for one in pages:
            del one.samples["process_start_time_seconds"]
        assert figures(*pages, wall=5.0).models[0].generated_per_s == 0.0


class TestView:
    def test_a_server_that_loads_its_models(self):
        loading = page(0.0)
        loading.samples["deqlm_ready"] = {(): 0.0}
        del loading.samples["deqlm_engine_up"]
        text = shown(figures(loading, loading, wall=1060.0))
        assert "takes no calls" in text
        assert "no model is loaded yet" in text

    def test_it_fits_80_columns_and_has_no_colours_where_there_is_no_terminal(self):
        told = figures(page(0.0), page(1.0, tokens=5), wall=1060.0)
        text = shown(told, trouble="gone " * 30)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
        assert "deqlm 1.2 (abc) at h:1  ready  up 1 min  12:00:00" in text
        assert "calls 4, streams 3  memory 250 MB" in text
        assert re.search(r"^sessions +4 of 10$", text, re.MULTILINE)

    def test_many_models_and_names_that_would_control_the_terminal(self):
        more = "".join(f'deqlm_engine_up{{model="{n * 30}\x1b[2J"}} 1\n' for n in "abcd")
        found = Page(1.0, parse((PAGE.format(start=1, cpu=0, tokens=0, rows=0, calls=0) + more)
                                .encode(), HERE))  # fmt: skip
        text = shown(figures(found, found, wall=2.0))
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 80
        assert "and 2 more; --model NAME shows one" in text

    @pytest.mark.parametrize(("width", "more"), [(40, 2), (60, 1), (80, 0)])
    def test_a_narrow_terminal_shows_fewer_models_and_whole_figures(self, width, more):
        others = "".join(
            f'deqlm_engine_up{{model="{n}"}} 1\n'
            f'deqlm_limit{{limit="max_sessions",model="{n}"}} 256\n'
            f'deqlm_sessions{{model="{n}"}} 123\n'
            for n in "ab"
        )
        text = PAGE.format(start=1, cpu=0, tokens=0, rows=0, calls=0) + others
        found = Page(1.0, parse(text.encode(), HERE))
        text = shown(figures(found, found, wall=2.0), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "between tokens p50, p99 " in text
        assert text.count("123 of 256") == min(2, 3 - more)
        assert (f"and {more} more" in text) == (more > 0)


def answering(*answers):
    """A port at which each connection gets one of the answers, as bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answer)
                except OSError:
                    pass
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def ok(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class TestWhatIsNoServer:
    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (b"", "Remote end closed connection without response"),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "does not speak HTTP"),
            (ok(b"<html>hello</html>"), "does not tell metrics as Prometheus reads them"),
            (ok(b"\xff\xfe\x00"), "does not tell metrics as Prometheus reads them"),
            (ok(b'x{a="b'), "does not tell metrics as Prometheus reads them"),
            (ok(b"# HELP \0"), "does not tell metrics as Prometheus reads them"),
            (ok(b""), "is not a deqlm server's: it has no deqlm_ready"),
            (ok(b"up 1\n"), "is not a deqlm server's: it has no deqlm_ready"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", "answers 404 Not Found"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", "answers 302 Found"),
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "a token that has the right metrics"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nup 1\n", "ended in the middle of"),
            (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "does not speak HTTP"),
            (ok(b"#" * (1 << 25)), "tells more than 16 MiB"),
        ],
    )
    def test_it_is_told_in_one_line(self, answer, problem, capfd):
        assert top.main(["--once", "--metrics", answering(answer)], "deqlm top") == 1
        told = capfd.readouterr().err
        assert re.match("deqlm top: .*http://127.0.0.1:", told)
        assert problem in told
        assert len(told.splitlines()) == 1

    def test_nothing_at_all(self, capfd):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        assert top.main(["--once", "--metrics", f"127.0.0.1:{port}"], "deqlm top") == 1
        told = capfd.readouterr().err
        assert f"nothing answers at http://127.0.0.1:{port}/metrics (Connection refused)" in told

    @pytest.mark.parametrize("value", ["", "a:b", "ftp://x", "http://", "x:70000", "u:p@h", "[::"])
    def test_places_that_are_none(self, value, capfd):
        assert top.main(["--once", "--metrics", value], "deqlm top") == 2
        assert "--metrics must be HOST:PORT or a URL, got" in capfd.readouterr().err

    def test_a_token_does_not_travel_in_the_clear(self, monkeypatch, capfd):
        monkeypatch.setenv("DEQLM_TOKEN", "secret")
        assert top.main(["--once", "--metrics", "192.0.2.1:9464"], "deqlm top") == 2
        told = capfd.readouterr().err
        assert "must not go to http://192.0.2.1:9464/metrics for all to read" in told
        assert "secret" not in told

    def test_tls_where_none_is_spoken(self, capfd):
        place = answering(b"HTTP/1.1 200 OK\r\n\r\n")
        assert top.main(["--once", "--tls", "--metrics", place], "deqlm top") == 1
        assert "no encrypted connection to https://127.0.0.1:" in capfd.readouterr().err


def test_once(live_server, capsys):
    Stubs(live_server.channel, owner="ann").score([1, 2, 3])
    arguments = ["--once", "--interval-s", "0.1", "--metrics", live_server.metrics_address]
    assert top.main(arguments, "deqlm top") == 0
    text = capsys.readouterr().out
    assert f"at {live_server.metrics_address}  ready" in text
    assert re.search(r"^ +pieces +words$", text, re.MULTILINE)
    assert top.main([*arguments, "--json", "--model", "words"], "deqlm top") == 0
    told = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in told["models"]] == ["words"]
    assert told["models"][0]["rows"] is None
    assert top.main([*arguments, "--model", "x"], "deqlm top") == 1
    assert "model must be one of pieces, words, got 'x'" in capsys.readouterr().err


def test_by_a_certificate(make_server, tmp_path, capfd):
    files = issue(tmp_path, "files", trustme.CA(), "127.0.0.1")
    server = make_server(**server_options(files, tls_client_ca=files.ca))
    flags = ["--once", "--interval-s", "0.1", "--metrics", server.metrics_address]
    own = ["--tls-ca", str(files.ca), "--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    assert top.main([*flags, *own], "deqlm top") == 0
    assert "ready" in capfd.readouterr().out
    assert top.main([*flags, *own[:2]], "deqlm top") == 1
    assert top.main([*flags, *own[:4]], "deqlm top") == 2
    assert "give both, or neither" in capfd.readouterr().err
    assert top.main([*flags, "--tls-ca", "/nowhere/ca"], "deqlm top") == 2
    assert "cannot read /nowhere/ca: No such file" in capfd.readouterr().err


def test_a_page_is_one_that_any_server_tells(live_server):
    place = read_place(live_server.metrics_address)
    told = figures(*[fetch(place, token=None, context=None)] * 2, wall=time.time())
    assert [model.name for model in told.models] == ["pieces", "words"]
    with pytest.raises(PageError, match="does not speak HTTP"):
        fetch(read_place(live_server.address), token=None, context=None)


COMMAND = (sys.executable, "-m", "cli", "top", "--interval-s", "0.2", "--metrics")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
    "COLUMNS": "80",
    "TERM": "xterm-256color",
}


def test_it_goes_on_when_the_server_starts_anew(tiny_models):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = ("--model", f"tiny={tiny_models / 'words'}", "--port", "0", f"--metrics-port={port}")
    server = Process(*model)
    server.wait_ready()
    watching = subprocess.Popen(
        [*COMMAND, f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        wait_line(watching, r" ready  up ")
        server.process.terminate()
        assert server.wait() == 0
        wait_line(watching, r"nothing answers at http://.*")
        server = Process(*model)
        server.wait_ready()
        wait_line(watching, r" ready  up \d+ s")
    finally:
        watching.send_signal(signal.SIGINT)
        server.process.terminate()
        server.wait()
    text, _ = watching.communicate(timeout=DEADLINE_S)
    assert watching.returncode == 0
    assert "\x1b" not in text


def wait_line(process, pattern):
    for line in process.stdout:
        assert len(line) <= 81
        if re.search(pattern, line):
            return
    pytest.fail("it ended")


def test_on_a_terminal_it_leaves_the_screen_as_it_was(live_server):
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        [*COMMAND, live_server.metrics_address], stdin=theirs, stdout=theirs, env=ENVIRONMENT
    )
    os.close(theirs)
    seen = b""
    try:
        deadline = time.monotonic() + DEADLINE_S
        while b"tokens/s, all models" not in seen:  # which needs two looks
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 65536)
        watching.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 1.0)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        assert watching.wait(timeout=DEADLINE_S) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)
    assert seen.index(b"\x1b[?1049h") < seen.index(b"\x1b[?1049l")
    assert b"\x1b[32mready" in seen


def test_it_loads_neither_torch_nor_grpc():
    code = "import sys, client.commands.top; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "grpc", "rich", "prometheus_client"} & set(done.stdout.split())
