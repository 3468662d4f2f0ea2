"""`deqlm top`: what a server does now, from its metrics."""

from __future__ import annotations

import argparse
import json
import math
import os
import ssl
import sys
import time
from collections import deque
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from cli.parser import Parser, positive_seconds
from client._addresses import is_here
from client.commands._environment import (
    METRICS_VARIABLE,
    TOKEN_VARIABLE,
    UsageError,
    add_credential_flags,
    read_token,
)
from client.metrics_page import (
    DEFAULT_PORT,
    Page,
    PageError,
    Place,
    fetch,
    read_place,
    tls_context,
)
from client.top.figures import Figures, figures

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
_DEFAULT_PLACE: Final = f"127.0.0.1:{DEFAULT_PORT}"
_HISTORY: Final = 200
_PLAIN_WIDTH: Final = 80


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    args = _parser(prog).parse_args(argv)
    try:
        place = _place(args)
        top = Top(place, read_token(args.token_file), _context(args, place), args.model)
        if args.once or args.json:
            return top.once(args.interval_s, is_json=args.json)
        return top.watch(args.interval_s)
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except PageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:  # how one ends it
        return EXIT_OK


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Show what a server does: requests, streams, tokens, calls of f, sessions, "
        "memory. Figures are of the time between two looks; Ctrl-C ends it.",
    )
    parser.add_argument(
        "--metrics",
        default=os.environ.get(METRICS_VARIABLE) or _DEFAULT_PLACE,
        metavar="HOST:PORT",
        help="where the server's metrics are, or a URL "
        f"(default: {_DEFAULT_PLACE}; environment: {METRICS_VARIABLE})",
    )
    parser.add_argument("--model", default="", help="show this one alone")
    parser.add_argument(
        "--interval-s",
        type=positive_seconds,
        default=2.0,
        metavar="S",
        help="seconds between two looks (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="look twice, show it, and end")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    add_credential_flags(parser, authorities="the system's")
    return parser


def _place(args: argparse.Namespace) -> Place:
    is_encrypted = args.tls or any((args.tls_ca, args.tls_cert, args.tls_key))
    try:
        place = read_place(args.metrics, is_encrypted=is_encrypted)
    except ValueError:
        raise UsageError(f"--metrics must be HOST:PORT or a URL, got {args.metrics!r}") from None
    has_token = args.token_file is not None or TOKEN_VARIABLE in os.environ
    if has_token and not place.is_encrypted and not is_here(f"{place.host}:{place.port}"):
        raise UsageError(f"a token must not go to {place.url} for all to read; name https://")
    return place


def _context(args: argparse.Namespace, place: Place) -> ssl.SSLContext | None:
    if not place.is_encrypted:
        return None
    try:
        return tls_context(args.tls_ca, args.tls_cert, args.tls_key)
    except ValueError as error:
        raise UsageError(error) from None


class Top:
    """Looks at a server's metrics again and again."""

    def __init__(
        self, place: Place, token: str | None, context: ssl.SSLContext | None, model: str
    ) -> None:
        """Says where they are, who looks, and which model alone is to be shown; empty for all."""
        self._place, self._token, self._context, self._model = place, token, context, model
        self._history: deque[float] = deque(maxlen=_HISTORY)

    def once(self, interval_s: float, *, is_json: bool) -> int:
        """Look twice and show what was in between. Raises PageError."""
        before = self._look()
        time.sleep(interval_s)
        told = self._figures(before, self._look())
        if is_json:
            print(json.dumps(_finite(asdict(told)), indent=2, allow_nan=False))
        else:
            self._console().print(self._view(told))
        return EXIT_OK

    def watch(self, interval_s: float) -> int:
        """Show it until somebody ends it; a server that goes away is waited for.

        Raises:
            PageError: it was not there to begin with.
        """
        page = self._look()
        told = self._figures(page, page)
        console = self._console()
        if not console.is_terminal:
            while True:
                told, page, trouble = self._next(told, page, interval_s)
                console.print(self._view(told, trouble))
                console.print()
        from rich.live import Live

        with Live(self._view(told), console=console, screen=True, auto_refresh=False) as live:
            while True:
                told, page, trouble = self._next(told, page, interval_s)
                live.update(self._view(told, trouble), refresh=True)

    def _next(self, told: Figures, page: Page, interval_s: float) -> tuple[Figures, Page, str]:
        """The next look: figures, page, and what went wrong; then the others are the last ones."""
        time.sleep(interval_s)
        try:
            now = self._look()
        except PageError as error:
            return told, page, f"{error}; trying again, these are the last figures"
        told = self._figures(page, now)
        self._history.append(sum(m.scored_per_s + m.generated_per_s for m in told.models))
        return told, now, ""

    def _look(self) -> Page:
        return fetch(self._place, token=self._token, context=self._context)

    def _figures(self, before: Page, now: Page) -> Figures:
        told = figures(before, now, wall=time.time())
        if not self._model:
            return told
        models = tuple([model for model in told.models if model.name == self._model])
        if not models and told.is_ready:
            names = ", ".join(model.name for model in told.models)
            raise PageError(f"model must be one of {names}, got {self._model!r}")
        return replace(told, models=models)

    def _view(self, told: Figures, trouble: str = "") -> RenderableType:
        from client.top.view import view

        place = self._place.url.partition("://")[2].partition("/")[0]
        clock = time.strftime("%H:%M:%S")
        return view(told, place=place, clock=clock, history=list(self._history), trouble=trouble)

    def _console(self) -> Console:
        from rich.console import Console

        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        return Console(width=width, highlight=False, markup=False)


def _finite(value: Any) -> Any:
    """The same with null where there is no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
