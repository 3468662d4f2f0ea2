"""`deqlm check`: whether everything in a server adds up."""

from __future__ import annotations

from client.commands._common import EXIT_RPC, make_parser, print_json, run
from client.sync import Client


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code, which is 1 where something is wrong."""
    parser = make_parser(
        prog, "Look whether a server's slots, queues, leases, sessions and streams add up."
    )
    args = parser.parse_args(argv)
    problems: list[str] = []

    def action(client: Client) -> None:
        found = client.check()
        problems.extend(found.problems)
        if args.json:
            print_json(found)
            return
        counts = f"{found.calls} calls, {found.leases} leases, {found.streams} streams"
        print("\n".join(found.problems) or f"nothing is wrong: {counts}")

    code = run(prog, args, action)
    return EXIT_RPC if problems else code
