"""`deqlm health`: whether a server answers calls; for probes and scripts."""

from __future__ import annotations

import argparse

from cli.parser import positive_seconds
from client._channel import READY_SERVICE
from client.commands._common import EXIT_RPC, make_parser, print_json, run
from client.errors import DeadlineExceeded
from client.resources import HealthStatus
from client.sync import Client


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code, which is 1 where the service does not answer."""
    args = _parse(argv, prog)
    seen: list[HealthStatus] = []

    def action(client: Client) -> None:
        service = "" if args.live else args.service
        if args.wait_s is not None:
            _wait(client, service, args)
        seen.append(client.health(service))
        if args.json:
            print_json({"service": service, "status": seen[-1]})
        else:
            print(seen[-1].value)

    code = run(prog, args, action)
    return code or (0 if seen == [HealthStatus.SERVING] else EXIT_RPC)


def _wait(client: Client, service: str, args: argparse.Namespace) -> None:
    """Raises DeadlineExceeded in words that say what was waited for."""
    try:
        client.wait_ready(service=service, timeout_s=args.wait_s)
    except DeadlineExceeded:
        what = service or "the server"
        raise DeadlineExceeded(
            f"{what} at {args.address} was not serving within {args.wait_s:g} s; "
            "`deqlm health --live` tells whether the process answers"
        ) from None


def _parse(argv: list[str], prog: str) -> argparse.Namespace:
    parser = make_parser(
        prog, "Ask a server for its health (grpc.health.v1): exit code 0 where it is serving."
    )
    parser.add_argument(
        "--live", action="store_true", help="whether the process answers, be it still loading"
    )
    parser.add_argument(
        "--service",
        default=READY_SERVICE,
        metavar="NAME",
        help="full name of the service to ask for (default: %(default)s; deqlm.store: the store)",
    )
    parser.add_argument(
        "--wait-s",
        type=positive_seconds,
        metavar="S",
        help="wait so long for it to be serving, also for a server that is yet to be started",
    )
    return parser.parse_args(argv)
