"""`deqlm generate`: continue a text, streamed as it is drawn."""

from __future__ import annotations

import argparse
import sys
import time

from client.commands._common import (
    add_budget_flags,
    add_solver_flags,
    budget,
    make_parser,
    print_json,
    priority,
    read_text,
    run,
    say,
    solver_options,
    table,
    to_json,
    unconverged,
    visible,
)
from client.options import Input, SamplingOptions, StopOptions
from client.results import GeneratedToken, GenerationFinished, GenerationResult, GenerationStarted
from client.sync import Client

_EVENTS = {
    GenerationStarted: "started",
    GeneratedToken: "token",
    GenerationFinished: "finished",
}


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    args = _parse(argv, prog)

    def action(client: Client) -> None:
        _generate(client, args)

    return run(prog, args, action)


def _parse(argv: list[str], prog: str) -> argparse.Namespace:
    parser = make_parser(
        prog, "Continue a text. The text goes to stdout as it is drawn, figures to stderr."
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text; - reads stdin")
    parser.add_argument("--session", metavar="ID", help="continue this session and append to it")
    parser.add_argument("--token-ids", nargs="+", type=int, metavar="ID", help="prompt as ids")
    parser.add_argument("--logprobs", type=int, metavar="N", help="alternatives per token to show")
    _add_sampling_flags(parser)
    _add_stop_flags(parser)
    add_solver_flags(parser)
    add_budget_flags(parser)
    args = parser.parse_args(argv)
    if args.prompt is not None and args.token_ids is not None:
        parser.error("give PROMPT or --token-ids, not both")
    return args


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, help="0 is greedy (default: 1)")
    group.add_argument("--top-k", type=int, metavar="N", help="keep the N most likely tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="keep probability P, in (0, 1]")
    group.add_argument("--min-p", type=float, metavar="P", help="keep P of the most likely's")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is none")
    group.add_argument("--seed", type=int, help="seed of the draw (default: the server's choice)")


def _add_stop_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stopping")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    group.add_argument("--stop-id", action="append", default=[], type=int, metavar="ID")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to draw")
    group.add_argument("--min-tokens", type=int, metavar="N", help="do not stop before")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after <eos>")


def _generate(client: Client, args: argparse.Namespace) -> None:
    started_s = time.monotonic()
    generation = client.generate(
        _prompt(args),
        session=args.session,
        model=args.model,
        sampling=_sampling(args),
        stop=_stop(args),
        logprobs=args.logprobs,
        solver=solver_options(args),
        budget=budget(args),
        priority=priority(args),
    )
    with generation:
        if args.json:
            for event in generation.events():
                print_json({"event": _EVENTS[type(event)], **to_json(event)}, indent=None)
                sys.stdout.flush()
            return
        for text in generation.texts():
            sys.stdout.write(text)
            sys.stdout.flush()
        print(flush=True)
        _print_figures(generation.result(), args, elapsed_s=time.monotonic() - started_s)


def _prompt(args: argparse.Namespace) -> Input | None:
    if args.token_ids is not None:
        ids: list[int] = args.token_ids
        return ids
    if args.prompt == "-":
        return read_text("-")
    prompt: str | None = args.prompt
    return prompt


def _sampling(args: argparse.Namespace) -> SamplingOptions:
    return SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )


def _stop(args: argparse.Namespace) -> StopOptions:
    return StopOptions(
        stop_strings=tuple(args.stop),
        stop_ids=tuple(args.stop_id),
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        ignore_eos=args.ignore_eos,
    )


def _print_figures(result: GenerationResult, args: argparse.Namespace, *, elapsed_s: float) -> None:
    if args.logprobs:
        say(_token_table(result.tokens))
    finished = result.finished
    rate = finished.generated_tokens / elapsed_s if elapsed_s > 0 else 0.0
    line = (
        f"[{finished.reason}] {finished.generated_tokens} tokens, {rate:.1f} tokens/s, "
        f"{finished.solver.nfe_per_token:.2f} nfe per token, seed {result.started.seed}"
    )
    line += unconverged(finished.solver)
    if result.started.unknown_tokens:
        line += f", {result.started.unknown_tokens} unknown words in the prompt"
    say(line)


def _token_table(tokens: tuple[GeneratedToken, ...]) -> str:
    rows = [
        [
            str(token.token_id),
            f"{token.logprob:.4f}",
            str(token.nfe) + ("" if token.converged else "!"),
            visible(token.text),
            "  ".join(f"{visible(other.text)} {other.logprob:.3f}" for other in token.alternatives),
        ]
        for token in tokens
    ]
    return table(["id", "logprob", "nfe", "text", "alternatives"], rows, left=(3, 4))
