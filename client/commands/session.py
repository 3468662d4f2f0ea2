"""`deqlm session`: make, look at, copy and delete sessions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cli.parser import Parser, positive_seconds
from client.commands._common import (
    add_solver_flags,
    common_flags,
    print_json,
    run,
    say,
    solver_options,
    table,
)
from client.commands._connection import UsageError
from client.resources import SessionInfo
from client.sync import Client


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    args = _parse(argv, prog)

    def action(client: Client) -> None:
        do: Callable[[Client, argparse.Namespace], None] = args.do
        do(client, args)

    return run(prog, args, action)


def _parse(argv: list[str], prog: str) -> argparse.Namespace:
    parser = Parser(prog=prog, description="Manage histories that the server keeps between calls.")
    # The common flags stand behind the subcommand; given in front too, its defaults would win.
    common = common_flags()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    create = commands.add_parser("create", parents=[common], help="make an empty session")
    create.add_argument(
        "--ttl-s", type=positive_seconds, metavar="S", help="time to live after the last use"
    )
    add_solver_flags(create)
    create.set_defaults(do=_create)
    get = commands.add_parser("get", parents=[common], help="tell about a session")
    get.add_argument("session_id", metavar="ID")
    get.set_defaults(do=_get)
    commands.add_parser("list", parents=[common], help="list your sessions").set_defaults(do=_list)
    fork = commands.add_parser("fork", parents=[common], help="copy a session")
    fork.add_argument("session_id", metavar="ID")
    fork.add_argument(
        "--ttl-s", type=positive_seconds, metavar="S", help="time to live of the copy"
    )
    fork.set_defaults(do=_fork)
    export = commands.add_parser("export", parents=[common], help="write a session to a file")
    export.add_argument("session_id", metavar="ID")
    export.add_argument("file", metavar="FILE", help="to write; - is stdout")
    export.set_defaults(do=_export)
    taken = commands.add_parser("import", parents=[common], help="make a session of such a file")
    taken.add_argument("file", metavar="FILE", help="to read; - is stdin")
    taken.add_argument(
        "--ttl-s", type=positive_seconds, metavar="S", help="time to live after the last use"
    )
    taken.set_defaults(do=_import)
    delete = commands.add_parser("delete", parents=[common], help="delete sessions")
    delete.add_argument("session_ids", metavar="ID", nargs="+")
    delete.set_defaults(do=_delete)
    return parser.parse_args(argv)


def _create(client: Client, args: argparse.Namespace) -> None:
    info = client.create_session(model=args.model, ttl_s=args.ttl_s, solver=solver_options(args))
    _print_new(info, args)


def _fork(client: Client, args: argparse.Namespace) -> None:
    _print_new(client.fork_session(args.session_id, ttl_s=args.ttl_s), args)


def _export(client: Client, args: argparse.Namespace) -> None:
    blob = client.export_session(args.session_id)
    if args.file == "-":
        sys.stdout.buffer.write(blob)
        return
    # What somebody has written is not to be read by everybody.
    with open(os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(blob)
    say(f"{len(blob)} bytes")


def _import(client: Client, args: argparse.Namespace) -> None:
    try:
        blob = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {args.file}: {error.strerror}") from error
    _print_new(client.import_session(blob, model=args.model, ttl_s=args.ttl_s), args)


def _print_new(info: SessionInfo, args: argparse.Namespace) -> None:
    """Print the id alone, so that a shell can keep it in a variable."""
    if args.json:
        print_json(info)
    else:
        print(info.session_id)


def _get(client: Client, args: argparse.Namespace) -> None:
    info = client.get_session(args.session_id)
    if args.json:
        print_json(info)
    else:
        print(_session_table([info]))


def _list(client: Client, args: argparse.Namespace) -> None:
    infos = client.list_sessions(model=args.model)
    if args.json:
        print_json({"sessions": infos})
    else:
        print(_session_table(infos) if infos else "no sessions")


def _delete(client: Client, args: argparse.Namespace) -> None:
    for session_id in args.session_ids:
        client.delete_session(session_id)
    if args.json:
        print_json({"deleted": args.session_ids})


def _session_table(infos: Sequence[SessionInfo]) -> str:
    now = datetime.now(UTC)
    rows = [
        [
            info.session_id,
            info.model,
            str(info.position),
            f"{info.totals.perplexity:.3f}" if info.totals.scored_tokens else "",
            f"{info.memory_bytes / 2**10:.0f}",
            f"{max((info.expire_time - now).total_seconds(), 0.0):.0f}",
            ("busy" if info.busy else "idle")
            + (f", repaired {info.repairs}×" * bool(info.repairs)),
        ]
        for info in infos
    ]
    header = ["session", "model", "tokens", "perplexity", "KiB", "expires in s", "state"]
    return table(header, rows, left=(0, 1, 6))
