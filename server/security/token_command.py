"""``deqlm token``: make a token, of which the server's file holds nothing but a hash."""

import argparse
import datetime
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.parser import Parser
from server.security.principals import digest_of

PREFIX = "deqlm_"
"""Of every token, so that what finds secrets in files and logs can find them."""
_RANDOM_BYTES = 32
EXIT_OK, EXIT_FAILURE = 0, 1


def new_token() -> str:
    """A token nobody can guess: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def entry_of(token: str, expires: datetime.date | None, note: str) -> str:
    """The line for the tokens of a principal in the server's file."""
    parts = [f'sha256: "{digest_of(token).hex()}"']
    if expires is not None:
        parts.append(f"expires: {expires.isoformat()}")
    if note:
        escaped = note.replace("'", "''")
        parts.append(f"note: '{escaped}'")
    return "- {" + ", ".join(parts) + "}"


def main(argv: Sequence[str], prog: str = "deqlm token") -> int:
    """Run the command; returns the exit code."""
    args = _parser(prog).parse_args(argv)
    token = new_token()
    entry = entry_of(token, args.expires, args.note)
    if args.out is None:
        print(f"token (told this once, for the client): {token}")
        print("line for the server's --auth-file, below the principal's tokens:")
        print(f"      {entry}")
        return EXIT_OK
    try:
        _write(args.out, token)
    except OSError as error:
        print(f"{prog}: cannot write {args.out}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILURE
    print(entry)
    return EXIT_OK


def _write(path: Path, token: str) -> None:
    """Only its owner may read the file; one that is there already is left alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="ascii") as file:
        file.write(token + "\n")


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Tokens with which clients show who they are.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make a token, and the line for the server's file",
        description="Make a token, print it once, and print the line for the server's file.",
    )
    create.add_argument(
        "--out", type=Path, metavar="FILE", help="write the token there, and print the line alone"
    )
    create.add_argument(
        "--expires", type=_date, metavar="YYYY-MM-DD", help="UTC day from which on it is refused"
    )
    create.add_argument("--note", type=_note, default="", help="for whoever reads the file")
    return parser


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be YYYY-MM-DD, got {text}") from None


def _note(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError("must be one line of printable characters")
    return text
