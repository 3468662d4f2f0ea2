"""`deqlm score`: how likely a text is, token by token."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from client.commands._common import (
    add_budget_flags,
    add_solver_flags,
    budget,
    make_parser,
    print_json,
    priority,
    read_pieces,
    read_text,
    run,
    size_bytes,
    solver_options,
    table,
    unconverged,
    visible,
)
from client.commands._connection import UsageError
from client.commands._progress import progress
from client.results import Score, SolverReport, StreamedScore, TokenScore, Totals
from client.sync import Client

PIECE_CHARS: Final = 32 * 1024
"""A longer text goes through ScoreStream, in pieces of this many characters, unless a budget bounds
it: a stream's is each answer's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """A score, the text it is of, and how long it took as seen from here."""

    score: Score
    text: str | None
    elapsed_s: float


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    args = _parse(argv, prog)

    def action(client: Client) -> None:
        scored = _score(client, args)
        if args.json:
            print_json(scored.score)
        else:
            _print(scored, args)

    return run(prog, args, action)


def _parse(argv: list[str], prog: str) -> argparse.Namespace:
    parser = make_parser(
        prog,
        "Score a text: log-probability of every token, totals and perplexity.",
        epilog="Natural logarithms in tables and JSON, bits in the shading.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument("--session", metavar="ID", help="score after this session and append to it")
    parser.add_argument(
        "--candidates",
        metavar="FILE",
        help="score each line of this file after the session and FILE, changing nothing",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="alternatives to show per token")
    parser.add_argument("--no-tokens", action="store_true", help="totals alone")
    parser.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="shade tokens by surprise (default: on a terminal, unless NO_COLOR is set)",
    )
    add_solver_flags(parser)
    add_budget_flags(parser)
    args = parser.parse_args(argv)
    if args.file is None and args.candidates is None:
        parser.error("FILE or --candidates is required")
    return args


def _score(client: Client, args: argparse.Namespace) -> _Scored:
    started_s = time.monotonic()
    if args.candidates is not None or budget(args) is not None:
        text = None if args.file is None else read_text(args.file)
        candidates = () if args.candidates is None else _candidates(args.candidates)
        score = _score_once(client, args, text, candidates=candidates)
        return _Scored(score=score, text=text, elapsed_s=time.monotonic() - started_s)
    pieces = read_pieces(args.file, size=PIECE_CHARS)
    first, second = next(pieces, ""), next(pieces, None)
    if second is None:
        text, score = first, _score_once(client, args, first)
    else:
        text, score = _score_in_pieces(client, args, chain((first, second), pieces))
    return _Scored(score=score, text=text, elapsed_s=time.monotonic() - started_s)


def _candidates(name: str) -> tuple[str, ...]:
    lines = tuple(line for line in read_text(name).splitlines() if line)
    if not lines:
        raise UsageError(f"{name} holds no candidate: one per line is expected")
    return lines


def _score_once(
    client: Client, args: argparse.Namespace, text: str | None, candidates: tuple[str, ...] = ()
) -> Score:
    return client.score(
        text,
        session=args.session,
        model=args.model,
        top_k=args.top_k,
        solver=solver_options(args),
        include_tokens=not args.no_tokens,
        candidates=candidates,
        budget=budget(args),
        priority=priority(args),
    )


def _score_in_pieces(
    client: Client, args: argparse.Namespace, pieces: Iterable[str]
) -> tuple[str, Score]:
    kept: list[str] = []
    tokens: list[TokenScore] = []
    last: StreamedScore | None = None
    with progress(size_bytes(args.file)) as shown:
        answers = client.score_stream(
            shown.pieces(_keeping(pieces, kept)),
            session=args.session,
            model=args.model,
            top_k=args.top_k,
            solver=solver_options(args),
            include_tokens=not args.no_tokens,
            priority=priority(args),
        )
        for last in answers:
            tokens.extend(last.tokens)
            shown.answered(last)
    if last is None or not last.final:
        raise UsageError("the server ended the stream of scores before its last answer")
    return "".join(kept), _as_score(last, tuple(tokens))


def _keeping(pieces: Iterable[str], kept: list[str]) -> Iterator[str]:
    for piece in pieces:
        kept.append(piece)
        yield piece


def _as_score(last: StreamedScore, tokens: tuple[TokenScore, ...]) -> Score:
    return Score(
        model=last.model,
        session_id=last.session_id,
        tokens=tokens,
        call=last.call,
        session=None if last.session_id is None else last.session,
        solver=last.solver,
        candidates=(),
        position=last.committed_position,
        unknown_tokens=last.unknown_tokens,
        timing=last.timing,
        stopped_by=last.stopped_by,
        kept=last.kept,
    )


def _print(scored: _Scored, args: argparse.Namespace) -> None:
    score = scored.score
    colour = _use_colour(args.color)
    if score.tokens and colour:
        from client.commands._shading import print_shaded

        print_shaded(score.tokens, scored.text)
    if score.tokens and (args.top_k or not colour):
        print(_token_table(score.tokens, scored.text))
    if score.candidates:
        print(_candidate_table(score, _candidates(args.candidates)))
    print("\n".join(_summary(scored)))


def _use_colour(choice: str) -> bool:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return wanted if choice == "auto" else choice == "always"


def _token_table(tokens: tuple[TokenScore, ...], text: str | None) -> str:
    raw = None if text is None else text.encode()
    rows = [
        [
            "" if token.byte_begin is None else str(token.byte_begin),
            str(token.token_id),
            f"{token.logprob:.4f}",
            str(token.nfe) + ("" if token.converged else "!"),
            _shown(token, raw),
            "  ".join(f"{visible(other.text)} {other.logprob:.3f}" for other in token.alternatives),
        ]
        for token in tokens
    ]
    return table(["byte", "id", "logprob", "nfe", "token", "alternatives"], rows, left=(4, 5))


def _shown(token: TokenScore, raw: bytes | None) -> str:
    if not token.is_unknown or raw is None or token.byte_begin is None:
        return visible(token.text)
    word = raw[token.byte_begin : token.byte_end].decode(errors="replace")
    return f"{visible(token.text)} ({visible(word)})"


def _candidate_table(score: Score, texts: tuple[str, ...]) -> str:
    ranked = sorted(
        zip(range(1, len(texts) + 1), score.candidates, texts, strict=True),
        key=lambda item: -item[1].totals.logprob_sum,
    )
    rows = [
        [
            str(number),
            f"{candidate.totals.logprob_sum:.4f}",
            f"{candidate.totals.perplexity:.3f}",
            str(candidate.totals.scored_tokens),
            visible(text).replace("␣", " ") + ("" if candidate.complete else "  (cut short)"),
        ]
        for number, candidate, text in ranked
    ]
    return table(["line", "logprob", "perplexity", "tokens", "candidate"], rows, left=(4,))


def _summary(scored: _Scored) -> Iterator[str]:
    score = scored.score
    if score.call.scored_tokens:
        yield f"perplexity    {score.call.perplexity:.3f}"
        yield f"tokens        {_totals(score.call)}, {score.unknown_tokens} unknown"
    if score.session is not None and not score.candidates:
        yield f"session       {_totals(score.session)}, perplexity {score.session.perplexity:.3f}"
    if not score.complete:
        yield f"cut short     by {score.stopped_by}, after {score.call.scored_tokens} tokens"
    yield f"solver        {solver_line(score.solver)}"
    tokens = score.solver.solved_tokens + score.solver.shared_tokens
    rate = tokens / scored.elapsed_s if scored.elapsed_s > 0 else 0.0
    yield f"time          {scored.elapsed_s:.2f} s, {rate:.1f} tokens/s, model {score.model}"


def _totals(totals: Totals) -> str:
    return (
        f"{totals.scored_tokens}, log-probability {totals.logprob_sum:.4f}, "
        f"mean {-totals.mean_nll:.4f}"
    )


def solver_line(report: SolverReport) -> str:
    """Sum up solver figures in one line."""
    line = (
        f"{report.nfe_per_token:.2f} nfe per token, residual at most {report.residual_max:.2e} "
        f"(tol {report.tol:g}, max_nfe {report.max_nfe})"
    )
    if not report.solved_tokens and report.shared_tokens:
        line = "no call of f"
    if report.shared_tokens:
        line += f", {report.shared_tokens} tokens taken over from what began alike"
    return line + unconverged(report)
