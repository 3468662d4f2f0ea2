"""What a run came to, for a terminal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from client.commands._common import table
from loadtest.figures import LATE_S, Figures
from loadtest.objectives import Objectives
from loadtest.results import Result

SHARED: Final = 0.1
"""Share of tokens solved before from which on figures tell of what the server keeps."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; columns in ``left`` are aligned to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: tuple[int, ...]

    def text(self) -> str:
        """For a terminal."""
        return table(self.header, self.rows, left=self.left)


def summary(result: Result, figures: Sequence[Figures], objectives: Objectives) -> str:
    """All of it."""
    parts = [
        "\n".join(about(result, objectives)),
        rates_table(figures).text(),
        times_table(figures, by_kind=len(figures) == 1).text(),
        "\n".join(_statuses(figures)),
        "\n".join(client_lines(result, figures)),
        counts_line(result),
    ]
    return "\n\n".join(part for part in parts if part)


def about(result: Result, objectives: Objectives) -> Iterator[str]:
    """What was measured, and with what."""
    run, load = result.settings.run, result.settings.load
    server, client = result.about.get("server", {}), result.about.get("client", {})
    yield (
        f"server    {run.address}, deqlm {server.get('version', '?')}, model "
        f"{server.get('model', '?')} ({server.get('n_parameters', 0) / 1e6:.3g} M parameters, "
        f"{server.get('dtype', '?')} on {server.get('device', '?')}, tol {server.get('tol', '?')}, "
        f"fingerprint {str(server.get('fingerprint', '?'))[:12]})"
    )
    yield (
        f"client    {run.processes} processes, {client.get('cores', '?')} cores, "
        f"{client.get('machine', '?')}, {client.get('system', '?')}, "
        f"Python {client.get('python', '?')}"
    )
    loop = "closed loop: each client waits for its answer, which hides what overload does"
    if load.pattern != "closed":
        loop = f"open loop, {load.pattern}: latency from when a request was due"
    yield f"load      {loop}; {load.seconds:g} s a stage after {load.warmup_s:g} s of warm-up"
    seeds = f"{run.seed}, one run of each stage"
    if run.repeats > 1:
        seeds = f"{run.seed} to {run.seed + run.repeats - 1}, {run.repeats} runs of each stage"
    yield f"seeds     {seeds}"
    yield f"mix       {_pairs(result.settings.mix)}"
    yield f"sizes     {_pairs(result.settings.size)}"
    yield f"good      {good(objectives)}"


def good(objectives: Objectives) -> str:
    """What makes a request good."""
    bounds = (
        ("scored", objectives.score_s),
        ("generated", objectives.generate_s),
        ("first token", objectives.first_s),
        ("per token", objectives.token_s),
    )
    told = [f"{name} within {bound:g} s" for name, bound in bounds if bound is not None]
    return ", ".join(told) or "whatever is answered"


def _pairs(options: Any) -> str:
    return " ".join(f"{name}={getattr(options, name)}" for name in type(options).__slots__)


def rates_table(figures: Sequence[Figures]) -> Table:
    """What each stage came to."""
    header = (
        "stage", "due/s", "answered/s", "good/s", "good", "tokens/s", "scored/s", "generated/s",
        "perplexity", "nfe", "failed", "dropped", "late",
    )  # fmt: skip
    rows = [
        [
            one.label,
            spread(one, "due_per_s"),
            spread(one, "answered_per_s"),
            spread(one, "good_per_s"),
            f"{one.mean('good_share'):.1%}",
            spread(one, "tokens_per_s"),
            f"{one.mean('scored_per_s'):.4g}",
            f"{one.mean('generated_per_s'):.4g}",
            number(one.mean("perplexity")),
            number(one.mean("nfe")),
            f"{one.mean('failed_share'):.1%}",
            f"{sum(one.values('dropped')):.0f}",
            f"{sum(one.values('late')):.0f}",
        ]
        for one in figures
    ]
    return Table(header, rows, (0,))


def number(value: float) -> str:
    """A figure; a dash where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def spread(one: Figures, name: str) -> str:
    """A rate, with its range where the stage was repeated."""
    values = one.values(name)
    told = f"{one.mean(name):.4g}"
    return told if len(values) == 1 else f"{told} ({min(values):.4g} to {max(values):.4g})"


def seconds(value: float) -> str:
    """A duration: milliseconds below a second.

    >>> seconds(0.0123), seconds(2.5)
    ('12.3 ms', '2.5 s')
    """
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def times_table(figures: Sequence[Figures], *, by_kind: bool = True) -> Table:
    """Percentiles of each stage, be it without those of each kind of request."""
    header = ("stage", "time", "n", "mean", "p50", "p90", "p95", "p99", "max")
    rows = []
    for one in figures:
        for name, histogram in one.timings.named(by_kind=by_kind).items():
            q = histogram.quantiles()
            cells = map(seconds, (q.mean, q.p50, q.p90, q.p95, q.p99, q.max))
            rows.append([one.label, name, str(q.n), *cells])
    return Table(header, rows, (0, 1))


def _statuses(figures: Sequence[Figures]) -> Iterator[str]:
    for one in figures:
        total: dict[str, int] = {}
        for rates in one.rates:
            for status, count in rates.statuses.items():
                total[status] = total.get(status, 0) + count
        yield f"{one.label}: " + ", ".join(f"{n} {status}" for status, n in sorted(total.items()))


def client_lines(result: Result, figures: Sequence[Figures]) -> Iterator[str]:
    """How late the client itself was, and a warning where that spoils the figures."""
    workers = [worker for stage in result.stages for worker in stage.workers]
    loop_s = max((worker["loop_lag_s"]["p99"] for worker in workers), default=0.0)
    busy = max((worker["cpu_share"] for worker in workers), default=0.0)
    lag_s = max((one.timings.lag.at(99.0) for one in figures), default=0.0)
    sent = f"client: sent at most {seconds(lag_s)} late (p99 of the worst stage)"
    if workers:
        yield (
            f"{sent}, read answers at most {seconds(loop_s)} late, its busiest process used "
            f"{busy:.0%} of a core"
        )
    else:
        yield f"{sent}; no stage came to its end, after which it tells how busy it was"
    if max(lag_s, loop_s) > 5 * LATE_S or busy > 0.9:
        yield (
            "WARNING: the client was slow enough to be seen in the figures; take more --processes, "
            "or another machine than the server's"
        )
    yield from _shared_lines(figures)


def _shared_lines(figures: Sequence[Figures]) -> Iterator[str]:
    """A warning where answers were quick as the server had them from before."""
    most = max(figures, key=lambda one: one.mean("shared_share"), default=None)
    if most is not None and (share := most.mean("shared_share")) > SHARED:
        yield (
            f"WARNING: {share:.0%} of the tokens of {most.label} took no call of f, as the server "
            "had solved what began alike: was the same --seed sent to it before? Start it anew, "
            "or take another seed, for figures of texts that are new to it"
        )


def counts_line(result: Result) -> str:
    """Whether client and server have counted alike."""
    compared = [one for one in result.stages if one.counts is not None]
    if not compared:
        return "counts: not compared with the server's metrics"
    total = sum(len(one.counts or ()) for one in compared)
    wrong = sum(not count["agrees"] for one in compared for count in one.counts or ())
    if wrong:
        return f"counts: {wrong} of {total} differ from the server's metrics"
    stages = f"{len(compared)} stage{'s' * (len(compared) != 1)}"
    return f"counts: all {total} agree with the server's metrics, in {stages}"
