"""Usage errors look alike whatever the command: one line, its name in front, exit code 2."""

import pytest

from cli.__main__ import main
from cli.commands import COMMANDS

# What must be given, so that only the option is wrong.
OPERANDS = {
    "score": ["x"],
    "session": ["list"],
    "tokenize": ["x"],
    "loadtest": ["run"],
    "token": ["create"],
    "report": ["x"],
    "convert": ["a", "b"],
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        code = main(list(arguments))
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else -1
    assert code == 2, arguments
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, name, *OPERANDS.get(name, []), "--tall")
    assert line.startswith(f"deqlm {name}")
    assert ": unknown option --tall; `deqlm" in line
    assert line.endswith(" --help` tells what it takes")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("score x --top-k many", "score: --top-k must be a whole number, got many"),
        ("score x --tol much", "score: --tol must be a number, got much"),
        ("score x --top-k", "score: --top-k must have a value, got none"),
        ("score x --priority mine", "score: --priority must be one of low, normal, high, got mine"),
        ("top --interval-s nan", "top: --interval-s must be a number of seconds above 0, got nan"),
        ("session", "session: COMMAND must be given"),
        ("session export", "session export: ID, FILE must be given"),
        ("tokenize", "tokenize: one of TEXT|FILE --ids must be given"),
        ("serve x", "serve: unexpected argument x"),
        ("info x", "info: unexpected argument x"),
        ("loadtest run --load.rates 0", "loadtest run: load.rates must be finite numbers above 0"),
        ("prepare", "prepare: --out is required"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *arguments.split())
    assert line.startswith(f"deqlm {problem}")
    assert line.endswith(" --help` tells what it takes")


@pytest.mark.parametrize("arguments", ["wander", "loadtest wander", "loadtest report --tall"])
def test_what_argparse_does_not_see(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *arguments.split()).startswith("deqlm")
