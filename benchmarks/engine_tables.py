"""The tables of the engine's benchmark, as Markdown, from its JSON."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import engine_targets

BASELINE = "baseline"


MARKS = ("<!-- results -->\n", "<!-- /results -->")
"""Between them a document has the tables."""


def into(document: str, found: str) -> str:
    """The document with ``found`` between its marks.

    Raises:
        ValueError: there are no marks.
    """
    before, begin, rest = document.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"the document must have {MARKS[0].strip()} and {MARKS[1]}")
    return f"{before}{begin}{found}\n{end}{after}"


def tables(results: dict[str, Any], names: Sequence[str]) -> str:
    """Targets, then the sections that were measured, each with what it was measured on."""
    settings = list(results["settings"])
    measured = {name: results["sections"][name] for name in names if name in results["sections"]}
    parts = []
    if summary := engine_targets.rows(measured, settings):
        parts.append(table(("", "target", *settings), summary))
    for name, found in measured.items():
        make = next(make for start, make in _TABLES.items() if name.startswith(start))
        parts += [f"### {name}", make(found), _run(found["run"])]
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(found: dict[str, Any], scale: float = 1.0, digits: int = 2) -> str:
    """Median, and least to largest."""
    low, middle, high = (f"{found[key] * scale:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low} – {high})"


def _run(run: dict[str, Any]) -> str:
    machine = run["machine"]
    load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
    return (
        f"`{run['command']}`, commit {run['commit']}, seed {run['seed']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['threads']} thread(s), device {machine['device']}, "
        f"torch {machine['torch']}, Python {machine['python']}, load average at the end {load}; "
        f"{run['minutes']:.1f} minutes."
    )


def _speed(found: dict[str, Any]) -> str:
    """Generation, or scoring."""
    competitors = found["competitors"]
    base = competitors[BASELINE]["tokens_per_s"]
    scored = "evaluations_per_token" in competitors[BASELINE]
    head = ["", "tokens/s, median (least – most)", "over the baseline", "best over best"]
    head += ["evaluations of f per token", "calls"]
    if not scored:
        head[-2:] = ["calls of f per token", "in the solve of one"]
    rows = []
    for name, one in competitors.items():
        speed = one["tokens_per_s"]
        cells = [
            name,
            spread(speed),
            f"{speed['median'] / base['median']:.1f}",
            f"{speed['max'] / base['max']:.1f}",
        ]
        cells.append(f"{one['evaluations_per_token' if scored else 'calls_per_token']:.1f}")
        cells.append(f"{one['nfe_mean']:.1f}")
        if "change_mean" in one:
            cells += [f"{one['change_mean']:.1e}", f"{one['perplexity_change']:+.2%}"]
        rows.append((*cells, str(one["unconverged"])))
    if "change_mean" in competitors[BASELINE]:
        head += ["mean change of log-probability", "of perplexity"]
    return table((*head, "not converged"), rows)


def _call(found: dict[str, Any]) -> str:
    read = found["bandwidth"]
    readers = ", ".join(f"{n} {v / 1e9:.1f}" for n, v in read["readers"].items())
    lines = [f"Read bandwidth {read['bytes_per_s'] / 1e9:.1f} GB/s, the best of: {readers}."]
    rows = [
        (
            name,
            f"{one['nbytes'] / 1e6:.0f}",
            spread(one["seconds"], 1e3),
            f"{one['over_reading']:.2f}",
            f"{one['over_reading_best']:.2f}",
        )
        for name, one in found["engine"].items()
    ]
    own = ("engine, one row", "MB of weights", "ms", "over reading them", "the least")
    lines.append(table(own, rows))
    parts = {"plain": found["plain"], **found["parts"]}
    counts = list(found["plain"]["seconds"])
    by_rows = [
        (
            name,
            *(f"{one['seconds'][n]['median'] * 1e3:.1f}" for n in counts),
            f"{one['operations_per_s'] / 1e9:.0f}" if "operations_per_s" in one else "",
        )
        for name, one in parts.items()
    ]
    head = ("f without attention, ms", *(f"{n} rows" for n in counts), "feed-forward, Gop/s")
    lines.append(table(head, by_rows))
    return "\n\n".join(lines)


def _profile(found: dict[str, Any]) -> str:
    kinds = [(name, work, one) for name, all_ in _by_setting(found) for work, one in all_.items()]
    head = ["ms per token", *(f"{name}: {work}" for name, work, _ in kinds)]
    parts = list(kinds[0][2]["ms_per_token"])
    rows = [[part, *(f"{one['ms_per_token'][part]:.2f}" for *_, one in kinds)] for part in parts]
    whole = [sum(one["ms_per_token"].values()) for *_, one in kinds]
    rows.append(["all", *(f"{ms:.2f}" for ms in whole)])
    rows.append(["calls of f per token", *(f"{one['calls_per_token']:.2f}" for *_, one in kinds)])
    rows.append(["rows of a call", *(f"{one['rows_per_call']:.1f}" for *_, one in kinds)])
    return table(head, rows)


def _trained(found: dict[str, Any]) -> str:
    generated = {
        "calls_per_token": "calls of f per generated token",
        "nfe_mean": "in the solve of one",
    }
    scored = {"evaluations_per_token": "evaluations of f per scored token"}
    lines = []
    for kind, counts in (("generation", generated), ("scoring", scored)):
        rows = [
            (
                model,
                name,
                *(f"{one[key]:.2f}" for key in counts),
                f"{one['change_mean']:.1e}",
                f"{one['change_median']:.1e}",
                f"{one['off']:.2%}",
                f"{one['perplexity']:.2f}",
                f"{one['perplexity_change']:+.3%}",
            )
            for model, both in found.items()
            if model != "run"
            for name, one in both[kind].items()
        ]
        more = ("mean change", "median", "off", "perplexity", "its change")
        lines.append(table(("model", "", *counts.values(), *more), rows))
    return "\n\n".join(lines)


def _wait(found: dict[str, Any]) -> str:
    rows = [
        (name, spread(one["calls"], digits=0), str(len(one["calls"]["all"])))
        for name, one in _by_setting(found)
    ]
    return table(("", "calls waited, median (least – most)", "requests"), rows)


def _gap(found: dict[str, Any]) -> str:
    rows = [
        (
            name,
            spread(one["alone"], 1e3, 1),
            spread(one["beside"], 1e3, 1),
            f"{one['beside']['median'] / one['alone']['median']:.2f}",
        )
        for name, one in _by_setting(found)
    ]
    return table(("", "ms alone", "ms beside a long request", "ratio"), rows)


def _growth(found: dict[str, Any]) -> str:
    settings = list(_by_setting(found))
    counts = list(settings[0][1])
    rows = []
    for name, one in settings:
        first = one[counts[0]]
        cells = [spread(one[count], 1e3, 1) for count in counts]
        most = max(one[count]["median"] / first["median"] - 1 for count in counts)
        best = max(one[count]["min"] / first["min"] - 1 for count in counts)
        rows.append((name, *cells, f"{most:+.1%}", f"{best:+.1%}"))
    head = ("ms per token, idle sessions:", *counts, "largest growth", "of the best times")
    return table(head, rows)


def _grpc(found: dict[str, Any]) -> str:
    rows = []
    for name, one in _by_setting(found):
        ours, theirs = (one["tokens_per_s"][way] for way in ("in process", "gRPC"))
        share = theirs["median"] / ours["median"]
        rows.append((name, spread(ours), spread(theirs), f"{share:.1%}"))
    return table(("", "tokens/s in process", "tokens/s through gRPC", "share"), rows)


def _by_setting(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for name, one in found.items() if name != "run"]


_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "generate": _speed,
    "score": _speed,
    "call": _call,
    "profile": _profile,
    "trained": _trained,
    "wait": _wait,
    "gap": _gap,
    "growth": _growth,
    "grpc": _grpc,
}
