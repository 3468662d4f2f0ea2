"""The console command: finding subcommands, and how it ends."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli import __main__ as console
from cli.commands import COMMANDS, Command

ROOT = Path(__file__).resolve().parents[2]


def echo(argv: list[str], prog: str) -> int:
    """A subcommand that tells what it was given."""
    print(prog, argv)
    return 7


def interrupted(argv: list[str], prog: str) -> int:
    """A subcommand that the user stops."""
    raise KeyboardInterrupt


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds this file's subcommands, found as all others are: by module and name."""
    monkeypatch.setitem(sys.modules, "console_probe", sys.modules[__name__])
    for name in ("echo", "interrupted"):
        command = Command(target=f"console_probe:{name}", summary="a probe")
        monkeypatch.setitem(COMMANDS, name, command)


@pytest.mark.usefixtures("commands")
def test_subcommand_gets_its_arguments_and_gives_the_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert console.main(["echo", "--help", "x"]) == 7
    assert capsys.readouterr().out == "deqlm echo ['--help', 'x']\n"


@pytest.mark.usefixtures("commands")
def test_interrupt_ends_with_130() -> None:
    assert console.main(["interrupted"]) == 130


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.split() == [name, *command.summary.split()]]
    assert max(map(len, lines)) <= 80


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: deqlm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scroe", "unknown command 'scroe'; did you mean 'score'?"),
        ("xyz", "unknown command 'xyz'; `deqlm --help` lists the commands"),
        ("--verison", "unknown option '--verison'"),
        ("", "unknown command ''"),
    ],
)
def test_unknown_command_is_a_usage_error(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.main([name]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--version"]) == 0
    assert re.fullmatch(r"deqlm 0\.1\.0 \(\S+\)\n", capsys.readouterr().out)


def test_help_starts_quickly() -> None:
    before = os.times()
    subprocess.run([sys.executable, "-m", "cli", "--help"], cwd=ROOT, check=True, timeout=60)
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert used < 0.3  # processor time, as the clock depends on who else uses the machine


def test_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("arguments", "name"), [(["--help"], "deqlm"), (["loadtest", "--help"], "deqlm loadtest")]
)
def test_output_that_cannot_be_written_is_one_line(arguments: list[str], name: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, f"{name}: No space left on device\n")


def test_what_a_terminal_cannot_show_is_shown_by_number() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "train", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "z \\u2190 (1" in done.stdout  # the arrow in what phantom_tau means


def source_of(target: str) -> Path:
    return ROOT / (target.partition(":")[0].replace(".", "/") + ".py")


@pytest.mark.parametrize(
    "target",
    [command.target for command in COMMANDS.values() if source_of(command.target).exists()],
)
def test_every_target_is_a_function_of_argv_and_prog(target: str) -> None:
    """Read, not imported: some of the modules take seconds to load."""
    tree = ast.parse(source_of(target).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    function = functions[target.partition(":")[2]]
    assert [argument.arg for argument in function.args.args] == ["argv", "prog"]
