"""The card of a bundled checkpoint: what it is, how it came about, what was measured on what."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deq_model.errors import CheckpointError
from training.evaluating.report import EvalReport
from training.evaluating.statistics import batch_means, exponential, exponential_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row of the card's table.

    Attributes:
        report: of the evaluation.
        blocks: how many first blocks of every stream count; the report's or less.
    """

    report: EvalReport
    blocks: int

    @classmethod
    def of(cls, report: EvalReport) -> "Measured":
        """All blocks of a report."""
        return cls(report=report, blocks=report.result.blocks)

    def first(self, blocks: int) -> "Measured":
        """The first blocks only, 0 for all: the calls of f are known for all blocks only."""
        wanted = blocks or self.blocks
        return Measured(report=self.report, blocks=min(wanted, self.blocks))

    @property
    def tokens(self) -> int:
        """Scored ones per stream."""
        return min(self.blocks * self.report.options.tgt_len, self.report.result.nll.shape[1])

    def row(self, name: str) -> str:
        """In Markdown."""
        report, result = self.report, self.report.result
        nll = result.nll[:, : self.tokens]
        mean = batch_means(nll, at_least=result.tgt_len)
        size = int(report.size[:, : self.tokens].sum())
        bits = float(nll.sum()) / math.log(2) / max(size, 1)
        whole = self.blocks == result.blocks
        cells = [
            name,
            f"{nll.numel():,}",
            str(report.about["dtype"]),
            f"{report.options.solver.tol:g}",
            f"{exponential(mean.mean):.2f} ± {exponential_error(mean):.2f}",
            f"{bits:.3f}",
            f"{result.nfe:.1f}" if whole else "",
            f"{result.evaluations:.1f}" if whole else "",
            f"{int((~result.converged[:, : self.tokens]).sum()):,}",
        ]
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a run's log says.

    Attributes:
        facts: rows of the card.
        regularised: whether any step had the Jacobian's term.
    """

    facts: Mapping[str, str]
    regularised: bool


def history(path: Path, *, hardware: str) -> History:
    """What a run's log says about its length and its best measurement.

    Raises:
        CheckpointError: it cannot be read, or has no finished measurement.
    """
    lines = _lines(path)
    steps = [line for line in lines if line.get("event") == "step"]
    valid = [line for line in lines if line.get("event") == "valid" and _known(line)]
    if not steps or not valid:
        raise CheckpointError(f"the log {path} has no finished measurement")
    best = min(valid, key=lambda line: float(line["mean_nll"]))
    where = f" on {hardware}" if hardware else ""
    return History(
        facts={
            "Training": f"{steps[-1]['step']:,} steps in "
            f"{duration(float(steps[-1]['seconds']))}{where}",
            "Validation": f"best at step {best['step']:,}, perplexity {best['perplexity']:.2f} on "
            f"{best['scored_tokens']:,} tokens of the validation text, by the solver of the run",
        },
        regularised=any(line.get("jac_loss") is not None for line in steps),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the log {path}: {error}") from None


def _known(line: Mapping[str, Any]) -> bool:
    return line.get("mean_nll") is not None and line.get("perplexity") is not None


def duration(seconds: float) -> str:
    """``40 s``, ``1 min``, ``1 h 21 min``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def card_text(
    *,
    name: str,
    regularised: bool,
    command: str,
    note: str,
    facts: Mapping[str, str],
    measured: Mapping[str, Measured],
    text: str,
) -> str:
    """The card in Markdown."""
    how = "implicit differentiation" + (" and Jacobian regularisation" if regularised else "")
    first = next(iter(measured.values()))
    rows = {"Spectral radius": _radius(first.report.result.radius)}
    return "\n".join(
        [
            f"# {name}",
            "",
            "A small deep-equilibrium language model of sixteenth- and seventeenth-century "
            "English (Shakespeare, Milton, the King James Bible), trained with "
            f"{how}.",
            "",
            "```",
            command,
            "```",
            "",
            *([note, ""] if note else []),
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in {**facts, **rows}.items()),
            "",
            f"## On held-out text (`{text}`)",
            "",
            "| protocol | scored tokens | dtype | tol | perplexity per token | bits per byte "
            "| calls of f per block | evaluations per token | above tol |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row.row(key) for key, row in measured.items()),
            "",
            _footnote(measured),
            "",
            "## Licence",
            "",
            "The texts are in the public domain; `data/README.md` lists them.",
            "",
        ]
    )


def _radius(radius: Sequence[float]) -> str:
    if not radius:
        return "not measured"
    return (
        f"of the Jacobian of f at its fixed points: median {statistics.median(radius):.2f}, "
        f"from {min(radius):.2f} to {max(radius):.2f} at {len(radius)} blocks of the held-out text"
    )


def _footnote(measured: Mapping[str, Measured]) -> str:
    rows = list(measured.values())
    options = rows[0].report.options
    part = min(row.tokens for row in rows)
    window = next((r.report.options.window for r in rows if r.report.options.window), 0)
    return (
        f"By `deqlm eval` in {options.batch_size} streams, blocks of {options.tgt_len}, memory "
        f"{options.mem_len}; errors are standard errors by batch means. The first row is the whole "
        f"text; the others are its first {part:,} tokens of each stream. Published: whole blocks "
        "by Broyden from zeros, all tokens of a stream but its first; exact: float64. "
        f"Chunk-invariant: each stream is a session that begins with `<eos>`, {window} tokens "
        "solved together, as a server does by default."
    )
