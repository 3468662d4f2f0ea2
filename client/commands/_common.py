"""What the commands share: flags, the connection, errors and exit codes, JSON."""

from __future__ import annotations

import argparse
import base64
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cli.parser import Parser
from client.commands._connection import UsageError, add_connection_flags, connect, is_encrypted
from client.errors import DeqlmError, Unauthenticated, Unavailable
from client.options import Budget, BudgetPolicy, Priority, SolverOptions
from client.results import SolverReport
from client.sync import Client

EXIT_OK: Final = 0
EXIT_RPC: Final = 1
EXIT_USAGE: Final = 2


def common_flags() -> Parser:
    """Make a parent parser with the flags that every command takes."""
    common = Parser(add_help=False)
    group = common.add_argument_group("connection and output")
    add_connection_flags(group)
    group.add_argument("--model", default="", help="model (default: the session's or server's)")
    group.add_argument("--json", action="store_true", help="print JSON instead of text")
    return common


def make_parser(
    prog: str, description: str, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Make the parser of a command without subcommands."""
    return Parser(prog=prog, description=description, epilog=epilog, parents=[common_flags()])


def add_solver_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `solver_options`."""
    group = parser.add_argument_group("solver (default: the session's or model's)")
    group.add_argument("--tol", type=float, help="relative residual at which a token is accepted")
    group.add_argument("--max-nfe", type=int, metavar="N", help="most calls of f on one token")
    group.add_argument(
        "--policy",
        choices=[policy.value for policy in BudgetPolicy],
        help="at the budget: take the best state and mark it, or fail",
    )
    group.add_argument(
        "--keep-tol",
        action="store_true",
        default=None,
        help="keep to --tol, however busy the server is",
    )


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `budget` and `priority`."""
    group = parser.add_argument_group("bounds of the whole call (the answer is what there is then)")
    group.add_argument("--max-time-s", type=float, metavar="S", help="seconds, waiting included")
    group.add_argument("--max-calls", type=int, metavar="N", help="calls of f")
    group.add_argument(
        "--priority",
        choices=[priority.value for priority in Priority],
        help="whose turn it is beside others (default: normal)",
    )


def budget(args: argparse.Namespace) -> Budget | None:
    """Read the bounds; None when none is given."""
    given = Budget(max_time_s=args.max_time_s, max_calls=args.max_calls)
    return None if given == Budget() else given


def priority(args: argparse.Namespace) -> Priority | None:
    """Read the priority; None when none is given."""
    return None if args.priority is None else Priority(args.priority)


def solver_options(args: argparse.Namespace) -> SolverOptions | None:
    """Read the solver flags; None when none is given."""
    policy = None if args.policy is None else BudgetPolicy(args.policy)
    options = SolverOptions(
        tol=args.tol, max_nfe=args.max_nfe, policy=policy, keep_tol=args.keep_tol
    )
    return None if options == SolverOptions() else options


def unconverged(report: SolverReport) -> str:
    """Tell of tokens accepted above the tolerance, or solved again; empty when there are none."""
    words = ""
    if missed := report.unconverged_tokens - report.loosened_tokens:
        words += f", {missed} tokens not converged"
    if report.loosened_tokens:
        words += f", {report.loosened_tokens} tokens loosened to tol {report.applied_tol:g}"
    if report.repaired_tokens:
        words += f", {report.repaired_tokens} tokens of the session solved again"
    return words


def run(prog: str, args: argparse.Namespace, action: Callable[[Client], None]) -> int:
    """Connect, act, and turn errors into one line on stderr and an exit code."""
    try:
        with connect(args) as client:
            action(client)
    except UsageError as error:
        say(f"{prog}: {error}")
        return EXIT_USAGE
    except DeqlmError as error:
        told = describe(error, args.address, is_encrypted=is_encrypted(args))
        say(f"{prog}: {error.code.name}: {told}")
        return EXIT_RPC
    return EXIT_OK


_CLOSED: Final = re.compile("Socket closed|Connection reset", re.IGNORECASE)
_TLS_FAILED: Final = re.compile("handshake|verification|certificate", re.IGNORECASE)


def describe(error: DeqlmError, address: str, *, is_encrypted: bool) -> str:
    """Say in one line what went wrong and what to do."""
    if isinstance(error, Unavailable) and _TLS_FAILED.search(error.message):
        return (
            f"no encrypted connection to {address}, as one of the two sides does not accept the "
            f"other's certificate, or one does not encrypt ({error.message}); look at --tls-ca, "
            "--tls-cert and --tls-key"
        )
    if isinstance(error, Unavailable) and not is_encrypted and _CLOSED.search(error.message):
        return (
            f"{address} closes the connection ({error.message}): it may take encrypted ones alone "
            "(--tls-ca FILE, or --tls), be about to end, or have as many as it takes"
        )
    if isinstance(error, Unavailable) and not error.reason:
        trusted = " with a certificate that --tls-ca vouches for" if is_encrypted else ""
        return (
            f"no server answers at {address}{trusted} ({error.message}); start one with "
            f"`deqlm serve --model NAME=PATH`, or name another with --address"
        )
    if isinstance(error, Unauthenticated):
        return (
            f"{address} does not know who calls; give --token-file FILE, or the environment "
            "variable DEQLM_TOKEN, with a token that it knows and that has not expired"
        )
    parts = [error.message]
    for violation in error.violations:
        if violation.description not in error.message:
            parts.append(f"{violation.field}: {violation.description}")
    if error.retry_after_s is not None:
        parts.append(f"try again in {error.retry_after_s:g} s")
    if error.request_id and error.request_id not in error.message:
        parts.append(f"request {error.request_id}")
    return "; ".join(part.replace("\n", " ") for part in parts)


def say(line: str) -> None:
    """Write a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def read_text(name: str) -> str:
    """Read a UTF-8 file, or stdin for "-"."""
    return "".join(read_pieces(name, size=2**20))


def read_pieces(name: str, *, size: int) -> Iterator[str]:
    """Read a UTF-8 file, or stdin for "-", in pieces of `size` characters, line ends kept.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    shown = "standard input" if name == "-" else name
    source: str | int = sys.stdin.fileno() if name == "-" else name
    try:
        with open(source, encoding="utf-8", newline="", closefd=name != "-") as file:
            while piece := file.read(size):
                yield piece
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8: {error.reason} at byte {error.start}") from error


def size_bytes(name: str) -> int | None:
    """Size of a file; None for stdin and for what has no size."""
    path = Path(name)
    return path.stat().st_size if name != "-" and path.is_file() else None


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a result as one JSON document; numbers that JSON lacks become null."""
    print(json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=False))


def to_json(value: Any) -> Any:
    """Turn a result into what `json` knows: bytes as base64, times as ISO 8601."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    """Lay out columns; those in `left` are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def visible(text: str) -> str:
    """Make white space and control characters of a token visible on one line."""
    named = text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in named)
