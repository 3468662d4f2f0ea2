"""Flags, environment and file make one checked configuration."""

import dataclasses
from pathlib import Path

import pytest

from cli.options import meanings
from cli.values import shown
from server.config import RequestLimits, ServerConfig, ServerConfigError
from server.options import parse_config

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "server.md"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("port: 1\nwindow: 2\nmodel: [a=x, b=y]\ntol: 0.01\nreflection: false\n")
    return path


def parse(*arguments):
    return parse_config([str(argument) for argument in arguments], "deqlm serve")


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(file, monkeypatch):
    assert parse().port == 50051
    assert parse("--config", file).port == 1
    monkeypatch.setenv("DEQLM_PORT", "2")
    assert parse("--config", file).port == 2
    assert parse("--config", file, "--port", 3).port == 3
    assert parse("--config", file, "--port", 3).window == 2


def test_the_file_may_be_named_by_the_environment(file, monkeypatch):
    monkeypatch.setenv("DEQLM_CONFIG", str(file))
    config = parse()
    assert (config.tol, config.reflection) == (0.01, False)
    assert config.model == ("a=x", "b=y")


def test_models_repeat_and_replace_those_of_the_file(file, monkeypatch):
    assert parse("--model", "c=z", "--model=d=w", "--config", file).model == ("c=z", "d=w")
    monkeypatch.setenv("DEQLM_MODEL", "e=u,f=v")
    assert parse("--config", file).model == ("e=u", "f=v")
    assert [s.name for s in parse().sources()] == ["e", "f"]


def test_flags_may_be_spelled_with_dashes_or_underscores():
    assert parse("--metrics-port", -1).metrics_port == -1
    assert parse("--metrics_port=-1").metrics_port == -1


def test_help_tells_every_field_with_default_and_variable(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(ServerConfig):
        assert f"--{field.name.replace('_', '-')}" in text
        assert f"DEQLM_{field.name.upper()}" in text
    words = " ".join(text.split())
    for field in dataclasses.fields(ServerConfig):
        if field.name not in ("model",):
            assert f"default: {shown(field.default)}; environment:" in words, field.name
    assert "seconds that running calls get" in words


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--bogus", "1"], "unknown option --bogus"),
        (["checkpoint"], "unexpected argument checkpoint"),
        (["--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["--port", "x"], "--port must be a whole number, got x"),
        (["--port", "70000"], "port must be in [0, 65535], got 70000"),
        (["--dtype", "int4"], "--dtype must be auto, float32, float16 or bfloat16, got int4"),
        (["--model"], "--model must have a value, got none"),
        (["--config", "no"], "cannot read no: No such file or directory"),
    ],
)
def test_usage_errors_are_one_line(arguments, problem, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    between = "" if problem.endswith("?") else ";"
    hint = "`deqlm serve --help` tells what it takes"
    assert capsys.readouterr().err == f"deqlm serve: {problem}{between} {hint}\n"


def test_a_bad_environment_variable_is_named(monkeypatch, capsys):
    monkeypatch.setenv("DEQLM_PORT", "abc")
    with pytest.raises(SystemExit):
        parse()
    assert "serve: DEQLM_PORT must be a whole number, got abc;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"widnow: 3\n", "unknown key widnow in FILE; did you mean window?"),
        (b"window: many\n", "window in FILE must be a whole number, got 'many'"),
        (b"window: \xff\xfe", "FILE is not UTF-8: invalid start byte at byte 8"),
    ],
)
def test_what_is_wrong_with_a_file(content, problem, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        parse("--config", path)
    assert problem.replace("FILE", str(path)) in capsys.readouterr().err


def test_a_model_of_null_is_none(tmp_path):
    path = tmp_path / "null.yaml"
    path.write_text("model: null\n")
    assert parse("--config", path).model == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70000}, r"port must be in \[0, 65535\], got 70000"),
        ({"metrics_port": -2}, r"metrics_port must be in \[0, 65535\], or -1 for none, got -2"),
        ({"tol": -0.1}, r"tol must be in \[0, 1\), got -0.1"),
        ({"tol": float("nan")}, r"tol must be in \[0, 1\), got nan"),
        ({"window": 0}, r"window must be at least 1, got 0"),
        ({"session_store": "sessions.db"}, r"session_store must be memory, sqlite:PATH, a path wi"),
        ({"session_store": "mysql://host/db"}, r"session_store must be memory, sqlite:PATH, .*got"),
        ({"device": "tpu"}, r"device must be cpu, cuda or cuda:N, got 'tpu'"),
        ({"grace_s": -1.0}, r"grace_s must be at least 0, got -1.0"),
        ({"max_ttl_s": float("inf")}, r"max_ttl_s must be finite and above 0, got inf"),
        ({"default_max_tokens": 9999}, r"default_max_tokens must be at most max_tokens = 4096"),
        ({"default_max_nfe": 2000}, r"default_max_nfe must be at most max_nfe = 1000, got 2000"),
        ({"max_running": 600}, r"max_running must be at most max_batch_tokens = 512, got 600"),
        ({"max_batch_tokens": 16}, r"max_running must be at most max_batch_tokens = 16, got 64"),
        ({"max_batch_tokens": 10**10}, r"max_batch_tokens must be at most 65536, got 10000000000"),
        ({"max_sessions": 10**11}, r"max_sessions must be at most 1000000, got 100000000000"),
        ({"window": 10**9}, r"window must be at most 4096, got 1000000000"),
        ({"threads": 100_000}, r"threads must be at most 1024, got 100000"),
        ({"max_message_bytes": 1 << 31}, r"max_message_bytes must be at most 2147483647, got"),
        ({"port": None}, r"port must be set, got None"),
        ({"model": ("a",)}, r"model must be NAME=PATH, got 'a'"),
        ({"model": ("a=x", "a=y")}, r"model 'a' must be named once, got 2"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(ServerConfigError, match=message):
        ServerConfig(**changes)


def test_what_is_bundled_is_served_when_no_model_is_named(tmp_path):
    with pytest.raises(ServerConfigError, match="none is bundled"):
        ServerConfig().sources(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    (source,) = ServerConfig().sources(tmp_path)
    assert (source.name, source.path) == ("small", tmp_path / "small")


def test_the_parts_take_their_fields():
    config = ServerConfig(window=7, max_top_k=3, default_max_nfe=9, policy="error")
    assert config.engine_limits.window == 7
    assert isinstance(config.request_limits, RequestLimits)
    assert config.request_limits.max_top_k == 3
    assert (config.default_solve.max_nfe, config.default_solve.policy) == (9, "error")


@pytest.mark.parametrize(
    ("changes", "tol"),
    [
        ({}, 3e-3),
        ({"dtype": "bfloat16"}, 5e-3),
        ({"device": "cuda:1"}, 5e-3),
        ({"device": "cuda", "dtype": "float32"}, 3e-3),
        ({"dtype": "bfloat16", "tol": 0.02}, 0.02),
    ],
)
def test_the_tolerance_fits_the_number_format(changes, tol):
    assert ServerConfig(**changes).default_solve.tol == tol


def test_every_option_is_documented_with_its_default():
    text = DOCUMENT.read_text(encoding="utf-8")
    described = meanings(ServerConfig)
    for field in dataclasses.fields(ServerConfig):
        is_word = field.default is None or field.type is bool
        default = str(field.default).lower() if is_word else str(field.default)
        shown = "–" if field.default == () else f"`{default}`"
        assert f"| `{field.name}` | {shown} | {described[field.name]} |" in text
