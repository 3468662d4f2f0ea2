"""Who may do what, on a real server."""

import urllib.error
import urllib.request

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deqlm.v1 import (
    admin_pb2,
    generation_pb2,
    model_pb2,
    session_pb2,
    tokenizer_pb2,
)
from server.security import access
from server.security.errors import PermissionMissing
from server.security.rights import ADMIN, METHODS, needed
from server.services import SERVICES
from tests.server.calls import TIMEOUT_S, fails, to_input
from tests.server.live import LiveServer
from tests.server.security.people import TOKENS, bearer, people, stubs_of, write


@pytest.fixture(scope="module")
def guarded(tiny_models, tmp_path_factory):
    """A server that asks who calls."""
    path = write(tmp_path_factory.mktemp("auth") / "auth.yaml", people())
    server = LiveServer(tiny_models, auth_file=path)
    yield server
    server.close()


def of(server, name):
    return stubs_of(server.channel, name)


def page(server, token=None):
    request = urllib.request.Request(f"http://{server.metrics_address}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def counted(server, reason):
    _, text = page(server, TOKENS["mon"])
    name = f'deqlm_auth_failures_total{{reason="{reason}"}} '
    return next((float(line[len(name) :]) for line in text.splitlines() if name in line), 0.0)


def test_every_method_says_which_right_it_needs():
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in SERVICES]
    methods = {f"{service.name}/{m.name}" for service in services for m in service.methods}
    assert set(METHODS) == methods
    assert needed("/deqlm.v1.ScoringService/Score") == {"score"}
    assert needed("/deqlm.v1.NewService/New") == ADMIN, "a method nobody thought of"


def test_with_a_token(guarded):
    stubs = of(guarded, "ann")
    assert stubs.score("It").position == 1
    assert [answer.final for answer in stubs.stream(["It was "])][-1]
    session = stubs.create()
    assert stubs.score("It", session_id=session).position == 1
    stubs.delete(session)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "missing"),
        (bearer("wrong"), "unknown_token"),
        (bearer(TOKENS["old"]), "expired_token"),
        (bearer(TOKENS["ann"][:-1]), "unknown_token"),
        (bearer(TOKENS["ann"].upper()), "unknown_token"),
        ((("authorization", TOKENS["ann"]),), "malformed"),
        ((("authorization", f"Basic {TOKENS['ann']}"),), "malformed"),
        ((("authorization", "Bearer"),), "malformed"),
        (bearer(TOKENS["ann"]) + bearer(TOKENS["bob"]), "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_one_that_is_known(guarded, metadata, reason):
    before = counted(guarded, reason)
    stubs = of(guarded, None)
    stubs.metadata = metadata
    told = fails(lambda: stubs.score("It"))
    assert (told.code, told.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert told.message == (
        "the caller must be known: send the metadata `authorization: Bearer TOKEN`, or connect "
        "with a client certificate that the server knows"
    )
    assert counted(guarded, reason) == before + 1


def test_streams_are_refused_before_they_are_read(guarded):
    stubs = of(guarded, None)
    assert fails(lambda: list(stubs.stream(["It"]))).code == "UNAUTHENTICATED"
    request = generation_pb2.GenerateRequest(prompt=to_input("It"))
    assert fails(lambda: list(stubs.generate(request))).code == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "message", [b"\xff" * 9, b"a" * (1 << 23)], ids=["malformed", "longer than any may be"]
)
def test_nothing_is_read_from_those_that_are_not_known(tiny_models, tmp_path, message):
    path = write(tmp_path / "auth.yaml", people())
    server = LiveServer(tiny_models, auth_file=path, max_message_bytes=1 << 22, open_health=True)
    try:
        call = server.channel.unary_unary("/deqlm.v1.ScoringService/Score")
        told = fails(lambda: call(message, timeout=TIMEOUT_S))
        assert (told.code, told.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        metadata = bearer(TOKENS["ann"])
        told = fails(lambda: call(message, timeout=TIMEOUT_S, metadata=metadata))
        assert told.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    finally:
        server.close()


def calls_of(stubs):
    """Every method, with what it needs."""
    options = {"timeout": TIMEOUT_S, "metadata": stubs.metadata}
    prompt = generation_pb2.GenerateRequest(
        prompt=to_input("It"), stop=generation_pb2.StopOptions(max_tokens=1)
    )
    return {
        "Score": lambda: stubs.score("It"),
        "ScoreStream": lambda: list(stubs.stream(["It"])),
        "Generate": lambda: list(stubs.generate(prompt)),
        "CreateSession": lambda: stubs.delete(stubs.create()),
        "GetSession": lambda: stubs.get("x"),
        "ListSessions": stubs.list,
        "ForkSession": lambda: stubs.fork("x"),
        "DeleteSession": lambda: stubs.delete("x"),
        "ExportSession": lambda: stubs.sessions.ExportSession(
            session_pb2.ExportSessionRequest(session_id="x"), **options
        ),
        "ImportSession": lambda: stubs.sessions.ImportSession(
            session_pb2.ImportSessionRequest(blob=b"x"), **options
        ),
        "Tokenize": lambda: stubs.tokenizer.Tokenize(
            tokenizer_pb2.TokenizeRequest(text="It"), **options
        ),
        "Detokenize": lambda: stubs.tokenizer.Detokenize(
            tokenizer_pb2.DetokenizeRequest(), **options
        ),
        "ListModels": lambda: stubs.models.ListModels(model_pb2.ListModelsRequest(), **options),
        "GetModel": lambda: stubs.models.GetModel(model_pb2.GetModelRequest(), **options),
        "CheckInvariants": lambda: stubs.admin.CheckInvariants(
            admin_pb2.CheckInvariantsRequest(), **options
        ),
        "Profile": lambda: stubs.admin.Profile(admin_pb2.ProfileRequest(), **options),
    }


_KINDS = ("Create", "Get", "Fork", "Delete", "Export", "Import")
_SESSIONS = {f"{kind}Session" for kind in _KINDS} | {"ListSessions"}
_TEXT = {"Tokenize", "Detokenize"}
_MODELS = {"ListModels", "GetModel"}
_SCORING = {"Score", "ScoreStream"}
ALLOWED = {
    "ann": _SCORING | {"Generate"} | _SESSIONS | _TEXT | _MODELS,
    "bob": _SCORING | _SESSIONS | _TEXT | _MODELS,
    "root": _MODELS | {"CheckInvariants", "Profile"},
    "mon": _MODELS,
}


@pytest.mark.parametrize("name", ALLOWED)
def test_rights(guarded, name):
    asked = calls_of(of(guarded, name))
    assert set(asked) == {method.rpartition("/")[2] for method in METHODS}
    for method, call in asked.items():
        if method in ALLOWED[name]:
            try:
                call()
            except Exception as error:
                assert error.code().name in (
                    "NOT_FOUND",
                    "INVALID_ARGUMENT",
                    "FAILED_PRECONDITION",
                )
        else:
            told = fails(call)
            assert (told.code, told.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED"), method
            assert f"{method} needs the right " in told.message
            assert f"which {name!r} does not have" in told.message


class TestSessions:
    """They belong to whoever makes them."""

    def test_a_foreign_one_is_as_one_that_is_missing(self, guarded):
        mine, other = of(guarded, "ann"), of(guarded, "bob")
        session = mine.create()
        missing = "0" * len(session)
        for act in (
            other.get,
            other.fork,
            other.delete,
            lambda name: other.score("It", session_id=name),
            lambda name: list(other.stream(["It"], session_id=name)),
        ):
            foreign, unknown = fails(lambda: act(session)), fails(lambda: act(missing))  # noqa: B023
            assert foreign.code == unknown.code == "NOT_FOUND"
            assert foreign.message.replace(session, missing) == unknown.message
            assert foreign.reason == unknown.reason == "SESSION_NOT_FOUND"
        assert session not in {s.session_id for s in other.list().sessions}
        assert session in {s.session_id for s in mine.list().sessions}
        mine.delete(session)

    def test_nobody_is_somebody_else_by_saying_so(self, guarded):
        mine, other = of(guarded, "ann"), of(guarded, "bob")
        session = mine.create()
        other.metadata += (("deqlm-owner", "ann"),)
        for call in (lambda: other.get(session), lambda: other.score("It"), other.list):
            told = fails(call)
            assert (told.code, told.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
            assert told.message.startswith("deqlm-owner must be absent or 'bob'")
        mine.metadata += (("deqlm-owner", "ann"),)
        assert mine.get(session).session_id == session
        mine.delete(session)


class TestHealthAndReflection:
    def check(self, server, metadata=()):
        stub = health_pb2_grpc.HealthStub(server.channel)
        request = health_pb2.HealthCheckRequest()
        first = next(stub.Watch(request, timeout=TIMEOUT_S, metadata=metadata))
        answer = stub.Check(request, timeout=TIMEOUT_S, metadata=metadata)
        assert answer.status == first.status
        return answer.status

    def reflect(self, server, metadata=()):
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S, metadata=metadata)
        return {service.name for service in answer.list_services_response.service}

    def test_they_are_for_those_that_are_known(self, guarded):
        before = counted(guarded, "unknown_token")
        for metadata in ((), bearer("wrong")):
            for ask in (self.check, self.reflect):
                told = fails(lambda: ask(guarded, metadata))  # noqa: B023
                assert (told.code, told.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert counted(guarded, "unknown_token") == before + 2
        assert self.check(guarded, bearer(TOKENS["mon"])) == 1
        assert set(SERVICES) <= self.reflect(guarded, bearer(TOKENS["mon"]))

    def test_health_can_be_for_everybody(self, make_server, guarded):
        path = guarded.server.config.auth_file
        server = make_server(auth_file=path, open_health=True, open_metrics=True)
        assert self.check(server) == 1
        assert fails(lambda: self.reflect(server)).code == "UNAUTHENTICATED"
        assert page(server)[0] == 200


@pytest.mark.parametrize(
    ("name", "status"),
    [(None, 401), ("wrong", 401), ("old", 401), ("ann", 403), ("mon", 200), ("root", 200)],
)
def test_metrics(guarded, name, status):
    token = None if name is None else TOKENS.get(name, name)
    code, text = page(guarded, token)
    assert code == status
    assert ("deqlm_sessions" in text) == (status == 200)


def test_without_principals_nobody_from_elsewhere_administers():
    from server.config import ServerConfig

    open_to_all = access.Access(ServerConfig())
    for peer in ("unix:", "ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5", "ipv6:[::1]:5"):
        access.check_rights(open_to_all.identify((), {}, peer), ADMIN, "Method")
    for peer in ("ipv4:10.0.0.1:5", "ipv6:%5B2001:db8::1%5D:5", "", "vsock:1:2"):
        stranger = open_to_all.identify((), {}, peer)
        access.check_rights(stranger, frozenset({"score"}), "Method")
        with pytest.raises(PermissionMissing, match="Method needs the right admin, which a caller"):
            access.check_rights(stranger, ADMIN, "Method")
