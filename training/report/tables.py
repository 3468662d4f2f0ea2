"""The tables of a page: what came out, the options, the bad steps."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.options.train import TrainOptions
from training.progress import duration
from training.report.reading import Record, RunLog, finite, last

_UNTOLD = {"run.out", "run.resume"}
_MOST_BAD_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Texts, not yet escaped.

    Attributes:
        title: heading above it.
        head: names of the columns.
        rows: cells, as many as columns.
        marked: numbers of the rows that stand out.
        note: a sentence below; empty for none.
        kind: its class for the style sheet.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""
    kind: str = ""


def tables(runs: Sequence[RunLog]) -> list[Table]:
    """What comes before the charts: one column for each run."""
    return [_summary(runs)]


def details(runs: Sequence[RunLog]) -> list[Table]:
    """What comes after them."""
    return [*_bad_steps(runs), *_options(runs)]


def _summary(runs: Sequence[RunLog]) -> Table:
    rows = [(name, *(tell(run) or "" for run in runs)) for name, tell in _ROWS]
    told = [row for row in rows if any(row[1:])]
    head = ("", *(run.name for run in runs))
    rows_of_text = [[cell or "–" for cell in row] for row in told]
    kind = "pairs" if len(runs) == 1 else ""
    return Table(title="Summary", head=head, rows=rows_of_text, kind=kind)


def _steps(run: RunLog) -> str:
    total = run.number("optimiser.max_steps")
    if total is None:
        return f"{run.last_step:,}"
    if run.last_step >= total:
        return f"all {total:,.0f}"
    return f"{run.last_step:,} of {total:,.0f} ({_per_cent(run.last_step / total, 0)}) so far"


def _time(run: RunLog) -> str | None:
    seconds = last(run.steps, "seconds")
    return None if seconds is None else duration(seconds)


def _best(run: RunLog) -> str | None:
    found = [(finite(record.get("perplexity")), record["step"]) for record in run.valid]
    sound = [(value, step) for value, step in found if value is not None]
    if not sound:
        return None
    value, step = min(sound)
    return f"{value:.2f} at step {step:,}"


def _data(run: RunLog) -> str | None:
    named = run.option("data.prepared") or run.option("data.train")
    return None if named is None else str(named)


def _tokens(run: RunLog) -> str | None:
    streams, length = run.number("data.batch_size"), run.number("model.tgt_len")
    if not (streams and length):
        return None
    about = "about " if run.number("data.tgt_len_std") else ""
    return f"{about}{run.last_step * streams * length:,.0f}"


def _bad(run: RunLog) -> str:
    skipped = sum(finite(record.get("skipped")) or 0 for record in run.steps)
    if not run.bad_steps:
        return f"{skipped:.0f}"
    return f"{len(run.bad_steps)}, {skipped:.0f} of them skipped"


def _field(form: str, event: str, *names: str) -> Callable[[RunLog], str | None]:
    def tell(run: RunLog) -> str | None:
        value = last(run.steps if event == "step" else run.valid, *names)
        return None if value is None else form.format(value)

    return tell


def _unconverged(run: RunLog) -> str | None:
    for record in reversed(run.valid):
        number, of = finite(record.get("unconverged")), finite(record.get("scored_tokens"))
        if number is not None and of:
            return _per_cent(number / of, 1)
    return None


def _per_cent(share: float, digits: int) -> str:
    """The sign must not stand on a line of its own."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _unreadable(run: RunLog) -> str | None:
    return str(run.unreadable) if run.unreadable else None


_ROWS: tuple[tuple[str, Callable[[RunLog], str | None]], ...] = (
    ("Steps", _steps),
    ("Time", _time),
    ("Begun and gone on", lambda run: f"{run.starts} times" if run.starts > 1 else None),
    ("Best validation perplexity", _best),
    ("Last validation perplexity", _field("{:.2f}", "valid", "perplexity")),
    ("Last training loss, nats per token", _field("{:.3f}", "step", "loss")),
    ("Parameters", lambda run: None if run.parameters is None else f"{run.parameters:,}"),
    ("Training text", _data),
    ("Tokens trained on", _tokens),
    ("Calls of f, forward", _field("{:.1f}", "step", "nfe_forward")),
    ("Calls of f, backward", _field("{:.1f}", "step", "nfe_backward")),
    ("Calls of f, validation", _field("{:.1f}", "valid", "nfe")),
    ("Residual, forward", _field("{:.1e}", "step", "residual")),
    ("Residual, backward", _field("{:.1e}", "step", "residual_backward")),
    ("Validation tokens above the tolerance", _unconverged),
    ("Spectral radius", _field("{:.2f}", "step", "spectral_radius")),
    ("Jacobian term", _field("{:.3g}", "step", "jac_loss")),
    ("Tokens per second", _field("{:,.0f}", "step", "tokens_per_s")),
    ("Bad steps", _bad),
    ("Damaged lines of the log", _unreadable),
)


def _bad_steps(runs: Sequence[RunLog]) -> Iterator[Table]:
    for run in runs:
        if not run.bad_steps:
            continue
        title = "Bad steps" if len(runs) == 1 else f"Bad steps of {run.name}"
        left_out = len(run.bad_steps) - _MOST_BAD_STEPS
        yield Table(
            title=title,
            head=("Step", "Reason", "Action", "Loss", "Residual", "Gradient"),
            rows=[_bad_step(record) for record in run.bad_steps[-_MOST_BAD_STEPS:]],
            note=f"The {left_out} before these are left out." if left_out > 0 else "",
        )


def _bad_step(record: Record) -> list[str]:
    numbers = [finite(record.get(name)) for name in ("loss", "residual", "grad_norm")]
    texts = ["not finite" if number is None else f"{number:.3g}" for number in numbers]
    reason, action = (str(record.get(name, "–")) for name in ("reason", "action"))
    return [f"{record['step']:,}", reason, action, *texts]


def _options(runs: Sequence[RunLog]) -> Iterator[Table]:
    """The options that are not at their defaults in some run; those that differ stand out."""
    defaults = _defaults()
    found: list[list[str]] = []
    marked = set()
    for key in _keys(runs, defaults):
        values = [run.option(key) for run in runs]
        if all(value == defaults.get(key) for value in values):
            continue
        if any(value != values[0] for value in values):
            marked.add(len(found))
        default = _shown(defaults[key]) if key in defaults else "–"
        found.append([key, *map(_shown, values), default])
    if not found:
        return
    several = len(runs) > 1
    yield Table(
        title="Options that are not at their defaults",
        head=("Option", *(run.name if several else "Value" for run in runs), "Default"),
        rows=found,
        marked=frozenset(marked) if several else frozenset(),
        note="Rows in which the runs differ stand out." if several and marked else "",
        kind="options",
    )


def _keys(runs: Sequence[RunLog], defaults: Mapping[str, Any]) -> list[str]:
    """All options, those of today first in their order."""
    logged = [
        f"{group}.{name}"
        for run in runs
        for group, values in run.options.items()
        if isinstance(values, Mapping)
        for name in values
    ]
    ordered = dict.fromkeys([*(key for key in defaults if key in set(logged)), *logged])
    return [key for key in ordered if key not in _UNTOLD]


def _defaults() -> dict[str, Any]:
    found = {}
    for group, kind in TrainOptions.groups().items():
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                default = field.default
                value = list(default) if isinstance(default, tuple) else default
                found[f"{group}.{field.name}"] = value
    return found


def _shown(value: Any) -> str:
    """As YAML has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
