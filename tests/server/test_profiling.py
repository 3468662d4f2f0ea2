"""Profiles of a server that works: taken, refused, failed, and what is left of them."""

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

from client.aio import AsyncClient
from client.commands.profile import main
from client.errors import Aborted, FailedPrecondition, InvalidArgument
from client.sync import Client
from deqlm.v1 import admin_pb2
from tests.server.calls import ENDLESS, TIMEOUT_S, Stubs, fails
from tests.server.live import LiveServer
from tests.server.security.people import people, stubs_of, write
from tests.server.test_process import ROOT, Process

FILES = ["profile.json", "stacks.txt", "trace.json.gz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def server(tiny_models, folder):
    """A server that takes profiles."""
    made = LiveServer(tiny_models, profile_dir=folder)
    yield made
    made.close()


@pytest.fixture
def client(server):
    with Client(server.address, owner="ann") as client:
        yield client


@pytest.fixture
def busy(server):
    """Has the engine make steps until the test is over."""
    call = Stubs(server.channel).begin_score("It was a dark night. " * 500, solver=ENDLESS)
    yield call
    call.cancel()
    while server.engine().snapshot().running_jobs:
        time.sleep(0.01)


def events(path):
    with gzip.open(path / "trace.json.gz") as file:
        return json.load(file)["traceEvents"]


def visible(folder):
    """What somebody who lists a folder sees of profiles, finished or not."""
    return sorted(path.name for path in folder.iterdir())


def test_the_next_steps(client, busy, folder):
    made = client.profile(steps=12, max_time_s=60)
    assert (made.model, made.steps) == ("pieces", 12)
    path = folder / os.path.basename(made.folder)
    assert str(path) == made.folder
    assert visible(path) == FILES == sorted(made.files)
    steps = [e["name"] for e in events(path) if e["name"].startswith("ProfilerStep#")]
    assert len({name for name in steps}) >= 12
    products = [e for e in events(path) if e["name"].startswith("aten::") and e["dur"] >= 0]
    assert len(products) > 100
    about = json.loads((path / "profile.json").read_text())
    assert (about["steps"], about["model"], about["device"]) == (12, "pieces", "cpu")
    assert about["seconds"] == pytest.approx(made.seconds, abs=1e-3)
    assert about["stack_samples"] == made.stack_samples


def test_the_stacks_show_who_works(client, busy, folder):
    made = client.profile(steps=1000, max_time_s=1.0)
    lines = (folder / made.folder / "stacks.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[^;]+(;[^;]+)* \d+", line) for line in lines)
    working = [line for line in lines if line.startswith("engine-pieces;")]
    assert any("JobRunner.step (engine/jobs.py:" in line for line in working)
    counts = [int(line.rpartition(" ")[2]) for line in lines]
    assert counts == sorted(counts, reverse=True)
    assert 1 < made.stack_samples <= 1.5 / 0.005


def test_an_engine_that_has_nothing_to_do(client, folder):
    made = client.profile(steps=5, max_time_s=0.3)
    assert made.steps == 0
    assert made.seconds >= 0.3
    assert visible(folder / made.folder) == FILES


async def test_the_asyncio_client(server, folder):
    async with AsyncClient(server.address) as client:
        made = await client.profile(steps=1, max_time_s=0.1)
    assert visible(folder / made.folder) == FILES


def test_another_model(client, folder):
    made = client.profile(steps=1, max_time_s=0.1, model="words")
    assert made.folder.endswith("-words")


def test_answers_stay_what_they_were(client, server):
    before = client.score("It was a dark night.")
    done = []
    taking = threading.Thread(target=lambda: done.append(client.profile(steps=20, max_time_s=30)))
    taking.start()
    while not done:
        assert client.score("It was a dark night.").call == before.call
    taking.join()
    assert done[0].steps == 20


def test_one_at_a_time(client, server):
    with Client(server.address) as other:
        done = []
        taking = threading.Thread(
            target=lambda: done.append(other.profile(steps=1000, max_time_s=2.0))
        )
        taking.start()
        while server.server._profiles._until is None:
            time.sleep(0.005)
        with pytest.raises(Aborted, match="a profile is being taken") as caught:
            client.profile()
        assert caught.value.reason == "PROFILE_RUNNING"
        assert 0 < caught.value.retry_after_s <= 3
        taking.join()
    assert done[0].steps == 0
    assert client.profile(steps=1, max_time_s=0.1), "and then the next one"


def test_impossible_ones(client):
    for fields, bound in (
        ({"steps": 0}, r"steps must be in \[1, 1000\], got 0"),
        ({"steps": 1001}, r"steps must be in \[1, 1000\], got 1001"),
        ({"max_time_s": 0.0}, r"max_time_s must be in \(0, 60\], got 0"),
        ({"max_time_s": float("nan")}, r"max_time_s must be in \(0, 60\], got nan"),
        ({"max_time_s": 61.0}, r"max_time_s must be in \(0, 60\], got 61"),
    ):
        with pytest.raises(InvalidArgument, match=bound):
            client.profile(**fields)


def test_a_server_without_a_folder_takes_none(live_server):
    with Client(live_server.address) as client:
        with pytest.raises(FailedPrecondition, match="profile_dir must be set") as caught:
            client.profile()
    assert caught.value.reason == "PROFILES_OFF"


def test_a_caller_that_goes_away_leaves_nothing(client, server, folder):
    before = visible(folder)
    stubs = Stubs(server.channel)
    request = admin_pb2.ProfileRequest(steps=1000, max_time_s=60)
    call = stubs.admin.Profile.future(request, timeout=TIMEOUT_S)
    engine = server.engine()
    while engine._recording is None:
        assert not call.done()
    call.cancel()
    while server.server._profiles._until is not None:
        time.sleep(0.005)
    assert engine._recording is None
    assert visible(folder) == before
    assert client.profile(steps=1, max_time_s=0.1)


@pytest.mark.parametrize("grace_s", [0.0, 3 * TIMEOUT_S])
def test_a_server_that_stops_ends_it(make_server, tmp_path, grace_s):
    server = make_server(profile_dir=tmp_path)
    with Client(server.address) as client:
        told = []

        def take():
            try:
                told.append(client.profile(steps=1000, max_time_s=60))
            except Exception as error:
                told.append(error)

        taking = threading.Thread(target=take)
        taking.start()
        while server.engine()._recording is None:
            assert not told
        server.run(server.server.stop(grace_s=grace_s))
        taking.join(TIMEOUT_S)
        assert not taking.is_alive()
    assert not [name for name in visible(tmp_path) if name.startswith(".")]
    if grace_s:
        assert told[0].seconds < 60  # before its time was up
        assert visible(tmp_path) == [os.path.basename(told[0].folder)]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/profiles"])
def test_a_folder_that_cannot_be_written_to(make_server, tmp_path, caplog, place):
    (tmp_path / "file").write_text("x")
    with caplog.at_level("WARNING"):
        server = make_server(profile_dir=tmp_path / place)
    assert "no profiles can be taken: profile_dir must be a folder with room" in caplog.text
    with Client(server.address) as client:
        with pytest.raises(FailedPrecondition, match="profile_dir must be a folder with") as caught:
            client.profile()
        assert caught.value.reason == "PROFILE_FAILED"
        assert re.search("exists|Not a directory|No such file", str(caught.value))
        assert client.score("It").position == 1
    assert visible(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """Mounts file systems of so many bytes; they go with the test."""
    mounted = []

    def mount(size):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run(command, capture_output=True).returncode == 0:
                mounted.append(place)
                return place
        pytest.skip("file systems can be mounted by root alone")

    yield mount
    for place in mounted:
        # Torch keeps open what it could not write.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("size", [1 << 19, 2 << 20])
def test_a_full_disk(make_server, small_disk, size):
    """Full at once, and full when torch writes what it has, of which it says nothing."""
    place = small_disk(size)
    server = make_server(profile_dir=place)
    stubs = Stubs(server.channel)
    call = stubs.begin_score("It was a dark night. " * 500, solver=ENDLESS)
    with Client(server.address) as client:
        with pytest.raises(FailedPrecondition, match="profile_dir must be a folder with") as caught:
            client.profile(steps=200, max_time_s=60)
        assert caught.value.reason == "PROFILE_FAILED"
        assert re.search("No space left on device|bytes are free there", str(caught.value))
        assert visible(place) == []
        assert shutil.disk_usage(place).used < 1 << 16, "nor is anything held that is not seen"
        call.cancel()
        assert client.score("It").position == 1
        made = client.profile(steps=1, max_time_s=0.1) if size > 1 << 20 else None
    assert visible(place) == ([os.path.basename(made.folder)] if made else [])


def test_what_a_killed_server_has_left_is_removed(client, folder):
    (folder / ".unfinished-x").mkdir()
    (folder / ".unfinished-x" / "trace.json").write_text("{")
    client.profile(steps=1, max_time_s=0.1)
    assert ".unfinished-x" not in visible(folder)


def test_administrators_alone_and_audited(make_server, tmp_path):
    file = tmp_path / "audit.log"
    path = write(tmp_path / "auth.yaml", people())
    server = make_server(auth_file=path, audit_log=file, profile_dir=tmp_path / "profiles")

    def profile(name):
        stubs = stubs_of(server.channel, name)
        request = admin_pb2.ProfileRequest(steps=1, max_time_s=0.1)
        return stubs.admin.Profile(request, timeout=TIMEOUT_S, metadata=stubs.metadata)

    assert fails(lambda: profile("ann")).code == "PERMISSION_DENIED"
    assert profile("root").steps == 0
    server.run(server.server._guard.wait_idle(10))
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["who"], line["action"], line["result"]) for line in told] == [
        ("ann", "AdminService/Profile", "PERMISSION_DENIED"),
        ("root", "AdminService/Profile", "OK"),
    ]


def test_the_command(server, folder, capsys, busy):
    assert main(["--address", server.address, "--steps", "3"], "deqlm profile") == 0
    told = capsys.readouterr().out
    assert re.search(r"on the server: trace\.json\.gz, stacks\.txt, .*; 3 steps of model", told)
    assert main(["--address", server.address, "--steps", "3", "--json"], "deqlm profile") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert main(["--address", server.address, "--steps", "0"], "deqlm profile") == 1
    assert "steps must be in [1, 1000], got 0" in capsys.readouterr().err


def test_the_command_says_that_there_was_nothing_to_record(server, capsys):
    flags = ["--address", server.address, "--max-time-s", "0.1"]
    assert main(flags, "deqlm profile") == 0
    told = capsys.readouterr()
    assert "; 0 steps of model" in told.out
    assert told.err.startswith("deqlm profile: no call was worked on meanwhile;")


def test_the_documented_reading(client, busy, folder, tmp_path):
    page = (ROOT / "docs" / "profiling.md").read_text()
    script = tmp_path / "read.py"
    script.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    path = folder / client.profile(steps=5, max_time_s=60).folder
    command = [sys.executable, str(script), str(path / "trace.json.gz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert re.search(r"^ +\d\.\d+ s +\d+ aten::\w+$", done.stdout, re.MULTILINE)
    looks = re.search(r"^(awk .*?) +#", page.replace("shakespeare-ift", "pieces"), re.MULTILINE)[1]
    done = subprocess.run(
        looks, shell=True, cwd=path, capture_output=True, text=True, timeout=100, check=True
    )
    assert re.fullmatch(r"\d*\n", done.stdout)


def test_a_signal(tiny_models, tmp_path):
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
        *("--profile-dir", str(tmp_path / "new" / "folder"), "--audit-log", str(tmp_path / "log")),
    )
    try:
        ready = process.wait_ready()
        with grpc.insecure_channel(ready[2]) as channel:
            call = Stubs(channel).begin_score("the of " * 2000, solver=ENDLESS)
            process.process.send_signal(signal.SIGUSR2)
            told = process.wait_line(re.compile(r"profile of (\d+) steps of model tiny: (.*)"))
            call.cancel()
            assert Stubs(channel).score("the of").model == "tiny"
    finally:
        process.process.terminate()
    assert process.wait() == 0
    assert told[1] == "50"
    assert sorted(os.listdir(told[2])) == FILES
    entry = json.loads((tmp_path / "log").read_text())
    assert (entry["who"], entry["action"], entry["result"]) == ("a signal", "profile", "OK")


def test_a_signal_without_a_folder(tiny_models):
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port", "-1"),
    )
    try:
        process.wait_ready()
        process.process.send_signal(signal.SIGUSR2)
        assert process.wait_line(re.compile("no profile: profile_dir must be set"))
    finally:
        process.process.terminate()
    assert process.wait() == 0
