"""One server from start to stop: scores, continues and listens to a text, and reads its metrics.

Every step is a command or a few lines that can be tried by hand; `deqlm --help` lists more.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.sync import Client

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "examples" / "caesar.txt"
PROMPT = "But soft, what light"
READY = re.compile(r"serving .+ at (\S+), metrics (\S+)$")
START_TIMEOUT_S = 300.0

# What the last table shows, and how.
FIGURES = (
    ("deqlm_request_success_total", "calls answered", "{:.0f}"),
    ("deqlm_scored_tokens_total", "tokens scored", "{:.0f}"),
    ("deqlm_generation_tokens_total", "tokens generated", "{:.0f}"),
    ("deqlm_f_calls_total", "calls of f", "{:.0f}"),
    ("deqlm_iteration_tokens_sum", "rows in them", "{:.0f}"),
    ("deqlm_nfe_per_token_count", "tokens solved", "{:.0f}"),
    ("deqlm_f_call_seconds_sum", "seconds in f", "{:.2f}"),
    ("deqlm_unconverged_tokens_total", "tokens not converged", "{:.0f}"),
    ("deqlm_time_to_first_token_seconds_sum", "seconds to first token", "{:.3f}"),
)

console = Console(highlight=False)


class DemoError(Exception):
    """The demonstration cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server process that answers: address of its calls, and of its metrics."""

    address: str
    metrics: str


def main(serve_options: list[str]) -> int:
    """Show everything once."""
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as log,
            server(serve_options, log) as to,
        ):
            show(to)
            title("Stop it")
        say(f"The server finished what it had begun, and is gone. {elapsed(began)} in all.")
    except DemoError as error:
        console.print(f"[red]{escape(str(error))}[/red]")
        return 1
    return 0


def show(to: Running) -> None:
    """Use a server."""
    before = read_metrics(to.metrics)
    title("What it has loaded")
    deqlm(to, "info")
    title(f"Score a text that it has never seen ({TEXT.relative_to(ROOT)})")
    # Shaded by surprise on a terminal; a log is spared a line for every token.
    how = [] if console.is_terminal else ["--no-tokens"]
    deqlm(to, "score", *how, str(TEXT.relative_to(ROOT)))
    title("Let it go on")
    deqlm(to, "generate", PROMPT, "--max-tokens", "60", "--seed", "4", "--temperature", "0.7")
    title("Read to it, line by line, in a session")
    read_aloud(to)
    title("What the metrics say of all that")
    show_metrics(before, read_metrics(to.metrics))
    say(f"From [cyan]{to.metrics}[/cyan], in the format of Prometheus.")


@contextmanager
def server(options: list[str], log: IO[str]) -> Iterator[Running]:
    """A server on free ports, for as long as the context lasts."""
    title("Start a server")
    command = ["serve", "--port", "0", "--metrics-port", "0", *options]
    console.print(f"[bold green]$[/bold green] deqlm {escape(shlex.join(command))} &")
    process = subprocess.Popen([sys.executable, "-m", "cli", *command], stderr=log, cwd=ROOT)
    began = time.monotonic()
    try:
        running = wait_listening(process, log)
        with Client(running.address) as client:
            client.wait_ready(timeout_s=START_TIMEOUT_S)
        say(f"It answers at [cyan]{running.address}[/cyan] after {elapsed(began)}.")
        yield running
    except DemoError as error:
        raise DemoError(f"{error}; the server's log:\n{read_log(log)}") from None
    finally:
        process.terminate()
        process.wait()
    if process.returncode != 0:
        raise DemoError(f"the server ended with {process.returncode}:\n{read_log(log)}")


def wait_listening(process: subprocess.Popen[bytes], log: IO[str]) -> Running:
    """Wait for the line in which the server tells its addresses."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with console.status("loading and warming up"):
        while process.poll() is None and time.monotonic() < deadline:
            for line in read_log(log).splitlines():
                if found := READY.search(line):
                    return Running(address=found[1], metrics=found[2])
            time.sleep(0.05)
    raise DemoError(f"the server did not start:\n{read_log(log)}")


def read_log(log: IO[str]) -> str:
    """All that the server has logged."""
    # The descriptor is shared with the server: its position must stay where it is.
    return os.pread(log.fileno(), 1 << 20, 0).decode("utf-8", errors="replace")


def deqlm(to: Running, *arguments: str) -> None:
    """Run a command and let it print."""
    shown = shlex.join(arguments)
    console.print(f"[bold green]$[/bold green] deqlm {escape(shown)}\n", soft_wrap=True)
    environment = os.environ | {"DEQLM_ADDRESS": to.address}
    command = [sys.executable, "-m", "cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        raise DemoError(f"deqlm {shown} ended with {done.returncode}")


def read_aloud(to: Running) -> None:
    """Score a text in pieces as they come; every answer is a commit to a session."""
    lines = TEXT.read_text(encoding="utf-8").splitlines(keepends=True)[:8]
    table = Table("tokens", "perplexity", "calls of f", "line", box=None, pad_edge=False)
    for column in table.columns[:3]:
        column.justify = "right"
    with Client(to.address) as client, client.session() as session:
        calls, perplexity = 0, 1.0
        for line in lines:
            score = session.score(line)
            assert score.session is not None
            calls, perplexity = calls + score.solver.nfe_total, score.session.perplexity
            table.add_row(
                str(score.position),
                f"{perplexity:.1f}",
                str(calls),
                escape(line.strip()),
            )
        one_call = client.score("".join(lines))
    console.print(table)
    say(
        f"\nPerplexity of the session: {perplexity:.1f}. "
        f"Of the same lines in one call: {one_call.call.perplexity:.1f}. "
        "How a text is cut does not matter, to the solver's tolerance."
    )


def read_metrics(url: str) -> dict[str, float]:
    """Every metric, summed over its labels."""
    sums: dict[str, float] = {}
    with urllib.request.urlopen(url, timeout=10) as page:
        for line in page.read().decode("utf-8").splitlines():
            if not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                name = sample.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def show_metrics(before: dict[str, float], after: dict[str, float]) -> None:
    """What moved."""
    table = Table("metric", "", "moved by", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for name, meaning, form in FIGURES:
        change = after.get(name, 0.0) - before.get(name, 0.0)
        table.add_row(f"[dim]{name}[/dim]", meaning, form.format(change))
    console.print(table)


def title(text: str) -> None:
    """Head of a step."""
    console.print()
    console.rule(f"[bold]{escape(text)}", align="left", style="blue")


def say(text: str) -> None:
    """A remark between the steps."""
    console.print(text)


def elapsed(began: float) -> str:
    """Time since an instant."""
    return f"{time.monotonic() - began:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
