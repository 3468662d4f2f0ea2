"""``deqlm COMMAND ...``: looks the command up, then imports only what that command needs."""

import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cli.commands import COMMANDS

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

PROGRAM = "deqlm"
Subcommand = Callable[[list[str], str], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _show_what_the_locale_cannot()
        code = _dispatch(arguments)
        print(end="", flush=True)  # so that a closed pipe shows here, not in the interpreter's exit
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a full disk, a name too long: a trace would tell no more
        _discard_output()
        name = " ".join([PROGRAM, *(one for one in arguments[:1] if one in COMMANDS)])
        print(f"{name}: {_told(error)}", file=sys.stderr)
        return EXIT_FAILURE


def _told(error: OSError) -> str:
    """What the system said, and of which file where it tells."""
    said = error.strerror or str(error)
    return f"{said}: {error.filename}" if error.filename else said


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return EXIT_OK if arguments else EXIT_USAGE
    if name in ("-V", "--version"):
        from cli.build import this_build  # which may ask git

        print(f"{PROGRAM} {this_build()}")
        return EXIT_OK
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        return EXIT_USAGE
    if name != "serve":
        # gRPC's core would tell on standard error what the command's own message says better.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return _load(COMMANDS[name].target)(arguments[1:], f"{PROGRAM} {name}")


def _load(target: str) -> Subcommand:
    """The function that ``"module:function"`` names."""
    module, _, function = target.partition(":")
    command: Subcommand = getattr(import_module(module), function)
    return command


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} [-h] [--version] COMMAND ...",
            "",
            "Serve, use and train deep-equilibrium language models.",
            "",
            "commands:",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` tells what a command takes.",
        ]
    )


def _unknown(name: str) -> str:
    kind = "option" if name.startswith("-") else "command"
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"`{PROGRAM} --help` lists the commands"
    return f"{PROGRAM}: unknown {kind} {name!r}; {hint}"


def _show_what_the_locale_cannot() -> None:
    """Has what few characters can be written to get the others by number, rather than an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let the interpreter's own last flush go nowhere: nobody reads it, or it cannot be written."""
    if sys.stdout is None:  # closed by the caller
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
