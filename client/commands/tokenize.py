"""`deqlm tokenize`: a text as a model sees it."""

from __future__ import annotations

import argparse
from pathlib import Path

from client.commands._common import make_parser, print_json, read_text, run, table, visible
from client.resources import Tokenized
from client.sync import Client


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser(prog, "Show the tokens of a text, or the text of token ids.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "text",
        nargs="?",
        metavar="TEXT|FILE",
        help="a file if there is one of this name, else the text itself; - reads stdin",
    )
    source.add_argument("--ids", nargs="+", type=int, metavar="ID", help="decode these token ids")
    args = parser.parse_args(argv)

    def action(client: Client) -> None:
        if args.ids is not None:
            _decode(client, args)
        else:
            _encode(client, args)

    return run(prog, args, action)


def _encode(client: Client, args: argparse.Namespace) -> None:
    text = read_text(args.text) if _names_file(args.text) else args.text
    result = client.tokenize(text, model=args.model)
    if args.json:
        print_json(result)
    else:
        print(_token_table(result, text.encode()))


def _decode(client: Client, args: argparse.Namespace) -> None:
    result = client.detokenize(args.ids, model=args.model)
    if args.json:
        print_json(result)
    else:
        print(result.text)


def _names_file(text: str) -> bool:
    if text == "-":
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a zero byte
        return False


def _token_table(result: Tokenized, raw: bytes) -> str:
    rows = [
        [
            str(token.byte_begin),
            str(token.byte_end),
            str(token.token_id),
            visible(token.text),
            visible(raw[token.byte_begin : token.byte_end].decode(errors="replace"))
            if token.is_unknown
            else "",
        ]
        for token in result.tokens
    ]
    lines = table(["begin", "end", "id", "token", "unknown"], rows, left=(3, 4))
    return f"{lines}\n{len(result.tokens)} tokens, {result.unknown_tokens} unknown"
