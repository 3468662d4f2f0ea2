"""Faults of the machine, to a real server process: files, memory, signals."""

import os
import shutil
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deqlm.v1 import common_pb2, generation_pb2, model_pb2
from tests.server.calls import TIMEOUT_S, Stubs, fails, to_input
from tests.server.test_process import ROOT, Process


@pytest.fixture
def checkpoint(tmp_path, tiny_models):
    """A checkpoint of the test's own."""
    return shutil.copytree(tiny_models / "words", tmp_path / "words")


def serve(checkpoint, *more):
    return Process("--model", f"tiny={checkpoint}", "--port", "0", "--metrics-port=-1", *more)


def model_of(stubs):
    request = model_pb2.GetModelRequest()
    return stubs.models.GetModel(request, timeout=TIMEOUT_S).model


@pytest.mark.parametrize("how", ["truncated", "replaced", "deleted"])
def test_a_checkpoint_that_changes_on_disk(checkpoint, how):
    process = serve(checkpoint)
    try:
        with grpc.insecure_channel(process.wait_ready()[2]) as channel:
            stubs = Stubs(channel)
            before = stubs.score("the of and to a in he")
            told = model_of(stubs).fingerprint
            for file in checkpoint.iterdir():
                if how == "truncated":
                    with file.open("r+b") as open_file:
                        open_file.truncate(10)
                elif how == "replaced":
                    file.write_bytes(b"something else" * 100)
                else:
                    file.unlink()
            after = stubs.score("the of and to a in he")
            assert [t.logprob for t in after.tokens] == [t.logprob for t in before.tokens]
            assert model_of(stubs).fingerprint == told
    finally:
        process.process.terminate()
    assert process.wait() == 0


def test_a_sigterm_amid_a_stream(checkpoint, tmp_path):
    """No new work, the stream ends whole, the session is saved, the exit code is 0."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    process = serve(checkpoint, "--session-store", store, "--grace-s", "60")
    try:
        with grpc.insecure_channel(process.wait_ready()[2]) as channel:
            stubs, health = Stubs(channel), health_pb2_grpc.HealthStub(channel)
            session = stubs.create()
            stop = generation_pb2.StopOptions(max_tokens=400, ignore_eos=True)
            request = generation_pb2.GenerateRequest(
                session_id=session, prompt=to_input("the"), stop=stop
            )
            watch = health.Watch(
                health_pb2.HealthCheckRequest(service="deqlm.v1.ScoringService"),
                timeout=TIMEOUT_S,
            )
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            responses = stubs.generate(request)
            assert next(responses).HasField("started")
            process.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            told = fails(lambda: stubs.score("the"))
            assert (told.code, told.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            *_, last = responses
            assert last.finished.generated_tokens == 400
            assert process.wait() == 0
    finally:
        process.process.kill()
    again = serve(checkpoint, "--session-store", store)
    try:
        with grpc.insecure_channel(again.wait_ready()[2]) as channel:
            assert Stubs(channel).get(session).position == 401
    finally:
        again.process.terminate()
    assert again.wait() == 0


def test_a_stop_while_the_store_is_down(checkpoint, redis_server):
    """What is lost with the process is told, by its exit code as well."""
    process = serve(checkpoint, "--session-store", redis_server.url, "--store-timeout-s", "0.5")
    try:
        with grpc.insecure_channel(process.wait_ready()[2]) as channel:
            stubs = Stubs(channel)
            session, untouched, deleted = (stubs.create() for _ in range(3))
            stubs.score("the", session_id=untouched)
            assert stubs.score("the", session_id=session).kept == common_pb2.KEPT_IN_STORE
            redis_server.stop()
            assert stubs.score("of", session_id=session).kept == common_pb2.KEPT_IN_MEMORY
            stubs.delete(deleted)
        process.process.terminate()
        assert process.wait() == 1
        told = "stopped; sessions lost, as the store did not take them: 1"
        assert process.lines[-1].endswith(told + "\n")
        assert "sessions that are deleted, and stay in the store: 1" in "".join(process.lines)
    finally:
        process.process.kill()
        redis_server.start()


_LIMITED = """
import resource, sys, torch
from tests.server.engine.helpers import MODEL, TEXT, running_engine
from server.engine.errors import OutOfMemory
from server.engine.limits import EngineLimits
from server.engine.results import Failed, Scored

limits = EngineLimits(max_batch_tokens=24, max_running=4, window=5, prefix_cache=200)
with running_engine(MODEL, limits) as caller, caller.session() as lease:
    first = caller.scored(caller.score(TEXT, lease=lease))
    kept = caller.engine.snapshot().prefix_tokens
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    call = caller.engine._batch.call

    def hungry(*args):
        torch.empty(1 << 26)  # 256 MiB, which the limit does not leave
        return call(*args)

    caller.engine._batch.call = hungry
    soft = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    event = caller.result(caller.score((1, 2), lease=lease))
    assert isinstance(event, Failed), event
    assert isinstance(event.error, OutOfMemory), event.error
    assert caller.engine.check().result(60) == []
    print("kept", kept, caller.engine.snapshot().prefix_tokens)
    caller.engine._batch.call = call
    assert isinstance(caller.result(caller.score((1, 2), lease=lease)), Scored)
    assert caller.engine.sessions.view(lease).position == first.session.position + 2
"""


def test_memory_that_the_system_does_not_give():
    """A limit of the kernel's: that job is told so, caches are dropped, the engine goes on."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    word, kept, left = done.stdout.split()
    assert (word, int(left)) == ("kept", 0)
    assert int(kept) > 0
