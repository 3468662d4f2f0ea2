"""`deqlm profile`: have a server write a profile of its next steps."""

from __future__ import annotations

from client.commands._common import make_parser, print_json, run, say
from client.sync import Client

_WRITING_S = 60.0
"""What a server may take for a profile, beside the time that it is told to record."""


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser(
        prog,
        "Have a server record the next steps of its engine, and write a trace of torch's profiler "
        "and the stacks of Python to its --profile-dir.",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="most steps, up to 1000 (50)")
    parser.add_argument(
        "--max-time-s", type=float, metavar="S", help="end after so many seconds, up to 60 (10)"
    )
    args = parser.parse_args(argv)

    def action(client: Client) -> None:
        made = client.profile(
            steps=args.steps,
            max_time_s=args.max_time_s,
            model=args.model,
            timeout_s=args.timeout_s or _WRITING_S + (args.max_time_s or 0.0),
        )
        if args.json:
            print_json(made)
            return
        print(
            f"{made.folder} on the server: {', '.join(made.files)}; {made.steps} steps of model "
            f"{made.model} in {made.seconds:.2f} s, stacks looked at {made.stack_samples} times"
        )
        if not made.steps:
            say(f"{prog}: no call was worked on meanwhile; take a profile while there are some")

    return run(prog, args, action)
