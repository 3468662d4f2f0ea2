"""Start, health, reflection and stop."""

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from deqlm.v1 import common_pb2, generation_pb2
from server.loading import load_engine
from server.services import SERVICES
from server.start import StartError
from tests.server.calls import ENDLESS, FLUSH, TIMEOUT_S, Stubs, fails, to_input
from tests.server.live import LiveServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def check(channel, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S).status


def watch(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=TIMEOUT_S)


class TestHealth:
    @pytest.mark.parametrize("service", ["", *SERVICES])
    def test_everything_serves(self, live_server, service):
        assert check(live_server.channel, service) == SERVING

    def test_unknown_services(self, live_server):
        assert fails(lambda: check(live_server.channel, "no.Such")).code == "NOT_FOUND"
        assert next(watch(live_server.channel, "no.Such")).status == UNKNOWN

    def test_while_models_load_the_server_lives_and_refuses_calls(self, make_server):
        may_load = threading.Event()

        def load(*arguments):
            may_load.wait(TIMEOUT_S)
            return load_engine(*arguments)

        server = make_server(load=load, wait=False)
        try:
            assert check(server.channel) == SERVING
            assert check(server.channel, SERVICES[0]) == NOT_SERVING
            changes = watch(server.channel, SERVICES[0])
            assert next(changes).status == NOT_SERVING
            told = fails(lambda: Stubs(server.channel).score("It"))
            assert (told.code, told.reason) == ("UNAVAILABLE", "NOT_READY")
            assert told.retry_s > 0
        finally:
            may_load.set()
        assert next(changes).status == SERVING
        assert Stubs(server.channel).score("It").position == 1

    def test_an_engine_whose_thread_is_gone(self, make_server):
        server = make_server()
        changes = watch(server.channel, SERVICES[0])
        assert next(changes).status == SERVING
        server.engine("words").stop(grace_s=0)
        assert next(changes).status == NOT_SERVING
        assert fails(lambda: Stubs(server.channel).score("the", model="words")).code == "INTERNAL"


def test_reflection_lists_and_describes_the_services(live_server):
    database = ProtoReflectionDescriptorDatabase(live_server.channel)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
    assert database.FindFileContainingSymbol("deqlm.v1.ScoreRequest").package == "deqlm.v1"


def test_reflection_can_be_off(make_server):
    server = make_server(reflection=False)
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert fails(database.get_services).code == "UNIMPLEMENTED"


class TestPorts:
    def test_the_port_is_in_use(self, live_server):
        with pytest.raises(StartError, match=rf"{live_server.address}: the port is in use"):
            LiveServer(live_server.folder, port=live_server.server.port)

    def test_the_metrics_port_is_in_use(self, live_server):
        with pytest.raises(StartError, match=r"for metrics: .*in use.*--metrics-port"):
            LiveServer(live_server.folder, metrics_port=live_server.server.metrics_port)

    def test_metrics_can_be_off(self, make_server):
        assert make_server(metrics_port=-1).server.metrics_port is None


class TestStop:
    """A server that stops; what it was asked before, it answers."""

    def test_running_calls_finish_and_new_ones_are_refused(self, make_server):
        server = make_server(grace_s=60.0)
        stubs = Stubs(server.channel)
        changes = watch(server.channel, SERVICES[0])
        assert next(changes).status == SERVING
        options = generation_pb2.StopOptions(max_tokens=60, ignore_eos=True)
        responses = stubs.generate(
            generation_pb2.GenerateRequest(prompt=to_input("It"), stop=options)
        )
        assert next(responses).HasField("started")
        stopped = server.begin(server.server.stop())
        assert next(changes).status == NOT_SERVING
        told = fails(lambda: stubs.score("It"))
        assert (told.code, told.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        *_, last = responses
        assert last.finished.generated_tokens == 60
        stopped.result(TIMEOUT_S)
        assert list(changes) == []

    def test_what_is_not_done_in_time_is_told(self, make_server):
        server = make_server(grace_s=0.1)
        stubs = Stubs(server.channel)
        never = threading.Event()

        def messages():
            yield "It "
            yield FLUSH
            never.wait(TIMEOUT_S)

        idle = stubs.stream(messages())
        next(idle)
        busy = stubs.begin_score([7] * 3000, solver=ENDLESS)
        running = threading.Event()
        while server.engine().snapshot().running_jobs == 0:
            running.wait(0.005)
        server.run(server.server.stop())
        for call in (busy.result, lambda: list(idle)):
            told = fails(call)
            assert (told.code, told.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        never.set()


def test_a_defect_is_told_by_request_id_and_logged(make_server, caplog):
    server = make_server()

    def broken(*_):
        raise RuntimeError("secret")

    server.engine().tokenizer.encode = broken
    told = fails(lambda: Stubs(server.channel).score("It"))
    assert (told.code, told.reason) == ("INTERNAL", "INTERNAL")
    assert told.message == f"internal error, logged as request {told.metadata['request_id']}"
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert told.metadata["request_id"] == record.request_id
    assert "secret" in caplog.text


def test_a_session_outlives_a_defect(make_server):
    server = make_server()
    stubs = Stubs(server.channel)
    session = stubs.create()
    engine = server.engine()
    submit = engine.submit
    engine.submit = lambda job: (_ for _ in ()).throw(RuntimeError("broken"))
    assert fails(lambda: stubs.score("It", session_id=session)).code == "INTERNAL"
    engine.submit = submit
    assert not stubs.get(session).busy
    assert stubs.score("It", session_id=session).position == 1


def test_compression_and_large_answers_pass(live_server):
    channel = grpc.insecure_channel(
        live_server.address,
        options=[("grpc.max_receive_message_length", -1)],
        compression=grpc.Compression.Gzip,
    )
    solver = common_pb2.SolverOptions(tol=0.5, max_nfe=2)
    answer = Stubs(channel).score([7] * 4000, solver=solver, top_k=20)
    assert len(answer.tokens) == 4000
    channel.close()
