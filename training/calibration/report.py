"""What a calibration tells: a table, JSON, and a section of the checkpoint's card."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.calibration.measure import EXACT_TOL, OFF, Measured
from training.options.calibration import CalibrateRun

_BEGIN, _END = "<!-- warm start -->", "<!-- /warm start -->"
_SECTION = re.compile(rf"\n*{_BEGIN}.*?{_END}\n*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found.

    Attributes:
        run: what was asked.
        fingerprint: of the checkpoint.
        measured: zeros first, then every map.
        fit_tokens: tokens fitted on, those that chose among fits included.
        valid_tokens: held-out tokens.
        fit_unconverged: tokens fitted on that did not come under ``fit_tol``.
        seconds: that it took.
    """

    run: CalibrateRun
    fingerprint: str
    measured: tuple[Measured, ...]
    fit_tokens: int
    valid_tokens: int
    fit_unconverged: int
    seconds: float

    @property
    def zeros(self) -> Measured:
        """What the maps are compared with."""
        return self.measured[0]

    @property
    def best(self) -> Measured:
        """The map that leaves the fewest calls of f, its own cost counted."""
        return min(self.measured[1:], key=lambda measured: measured.nfe)

    @property
    def kept(self) -> bool:
        """Whether it saves enough."""
        return self.best.saving(self.zeros) >= self.run.least_saving

    @property
    def verdict(self) -> str:
        """One sentence."""
        best = self.best
        saving = f"{best.saving(self.zeros):.1%} of the calls of f (its own cost counted)"
        if self.kept:
            return f"Kept: the {best.start} map saves {saving}."
        return (
            f"Nothing kept: the best map, {best.start}, saves {saving}, "
            f"least_saving is {self.run.least_saving:.1%}."
        )

    def figures(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kept": self.best.start if self.kept else None,
            "saving": self.best.saving(self.zeros),
            "fingerprint": self.fingerprint,
            "data": self.run.data.name,
            "valid": None if self.run.valid is None else self.run.valid.name,
            "fit_tokens": self.fit_tokens,
            "valid_tokens": self.valid_tokens,
            "fit_unconverged": self.fit_unconverged,
            "fit_tol": self.run.fit_tol,
            "tol": self.run.tol,
            "seconds": round(self.seconds, 1),
            "starts": [
                {
                    "start": one.start,
                    "error": one.error,
                    "cost": one.cost,
                    "saving": one.saving(self.zeros),
                    "served": [dataclasses.asdict(served) for served in one.served],
                }
                for one in self.measured
            ],
        }

    def table(self) -> str:
        """Markdown: a row for each start and window."""
        head = [
            "| start | error of the start | tokens solved together | calls of f per token "
            f"| change of log-probability: mean | median | above {OFF:g} | perplexity "
            "| not converged |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        return "\n".join([*head, *(row for one in self.measured for row in _rows(one))]) + "\n"

    def text(self) -> str:
        """What is printed."""
        return f"{self.table()}\n{self.verdict}\n"

    def section(self) -> str:
        """Of the card."""
        run = self.run
        held_out = f"`{run.valid.name}`" if run.valid else f"the last tenth of `{run.data.name}`"
        return "\n".join(
            [
                _BEGIN,
                "## Warm start",
                "",
                f"`warm_start.safetensors` gives solves their first states: a {self.best.start} "
                "map of a token's injection and the z* of the token before it, fitted by "
                f"`deqlm calibrate` to {self.fit_tokens:,} tokens of `{run.data.name}`. On "
                f"{self.valid_tokens:,} tokens of {held_out}, tolerance {run.tol:g}:",
                "",
                self.table(),
                f"It costs as many products as {self.best.cost:.2f} calls of f. Changes are "
                f"means without sign, against states solved to {EXACT_TOL:g}.",
                _END,
            ]
        )


def _rows(measured: Measured) -> Sequence[str]:
    rows = []
    for served in measured.served:
        cells = [
            measured.start,
            f"{measured.error:.3f}",
            str(served.window),
            f"{served.nfe:.2f}",
            f"{served.change:.1e}",
            f"{served.median:.1e}",
            f"{served.off:.2%}",
            f"{served.perplexity:+.2%}",
            f"{served.unconverged:,}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def with_section(card: str, section: str) -> str:
    """A card whose section about the warm start is this one, in its place or at the end."""
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: f"\n\n{section}\n\n", card, count=1).rstrip("\n") + "\n"
    return f"{card.rstrip()}\n\n{section}\n"
