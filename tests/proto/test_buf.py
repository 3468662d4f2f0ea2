"""The contract is documented field by field and keeps its wire format."""

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2] / "proto"
SOURCES = sorted(ROOT.glob("deqlm/v1/*.proto"))
BUF = "@bufbuild/buf@1.75.0"

# Paths in source info: field numbers of descriptor.proto from FileDescriptorProto down.
MESSAGE, ENUM, SERVICE = 4, 5, 6
FIELD, NESTED, NESTED_ENUM, ONEOF = 2, 3, 4, 8
VALUE, METHOD = 2, 2


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The sources with their comments."""
    out = tmp_path_factory.mktemp("descriptors") / "set.binpb"
    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    options = ["--include_source_info", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *includes, *options, *map(str, SOURCES)]) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def _message_elements(message, path, name):
    yield path, name
    for i, field in enumerate(message.field):
        yield (*path, FIELD, i), f"{name}.{field.name}"
    for i, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # those that `optional` makes
            yield (*path, ONEOF, i), f"{name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from _message_elements(nested, (*path, NESTED, i), f"{name}.{nested.name}")
    for i, enum in enumerate(message.enum_type):
        yield from _enum_elements(enum, (*path, NESTED_ENUM, i), f"{name}.{enum.name}")


def _enum_elements(enum, path, name):
    yield path, name
    for i, value in enumerate(enum.value):
        yield (*path, VALUE, i), f"{name}.{value.name}"


def _elements(file):
    for i, message in enumerate(file.message_type):
        yield from _message_elements(message, (MESSAGE, i), message.name)
    for i, enum in enumerate(file.enum_type):
        yield from _enum_elements(enum, (ENUM, i), enum.name)
    for i, service in enumerate(file.service):
        yield (SERVICE, i), service.name
        for j, method in enumerate(service.method):
            yield (SERVICE, i, METHOD, j), f"{service.name}.{method.name}"


def _comments(file) -> dict[tuple[int, ...], str]:
    return {
        tuple(location.path): location.leading_comments.strip()
        for location in file.source_code_info.location
    }


def test_everything_has_a_comment(described):
    missing, seen = [], 0
    for file in described:
        comments = _comments(file)
        for path, name in _elements(file):
            seen += 1
            if len(comments.get(path, "")) < 5:
                missing.append(f"{file.name}: {name}")
    assert seen > 200, "the sources were not walked through"
    assert missing == []


def test_every_call_tells_its_statuses(described):
    silent = [
        method.name
        for file in described
        for i, service in enumerate(file.service)
        for j, method in enumerate(service.method)
        if "Status: " not in _comments(file)[(SERVICE, i, METHOD, j)]
    ]
    assert silent == []


def test_services_and_calls_are_those_promised(described):
    calls = {
        service.name: [method.name for method in service.method]
        for file in described
        for service in file.service
    }
    assert calls == {
        "ScoringService": ["Score", "ScoreStream"],
        "GenerationService": ["Generate"],
        "SessionService": [
            "CreateSession",
            "GetSession",
            "ListSessions",
            "ForkSession",
            "DeleteSession",
            "ExportSession",
            "ImportSession",
        ],
        "TokenizerService": ["Tokenize", "Detokenize"],
        "ModelService": ["ListModels", "GetModel"],
        "AdminService": ["CheckInvariants", "Profile"],
    }


@pytest.mark.skipif(shutil.which("npx") is None, reason="npx is not installed")
def test_buf_lint_is_clean():
    command = ["npx", "--yes", BUF, "lint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
