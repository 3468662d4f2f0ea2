"""What one engine counts, on its thread."""

import math
from collections.abc import Sequence

from prometheus_client import Counter, Histogram

from server.engine.solve import Solved


class EngineMetrics:
    """Takes what an engine reports, on its thread."""

    def __init__(
        self,
        *,
        f_calls: Counter,
        warm: Counter,
        first: Histogram,
        rows: Histogram,
        sequences: Histogram,
        windows: Histogram,
        seconds: Histogram,
        nfe: Histogram,
        residual: Histogram,
        max_nfe: Counter,
        nonfinite: Counter,
        loosened: Counter,
        queries: Counter,
        shared: Counter,
        right: Counter,
        withdrawn: Counter,
    ) -> None:
        self._f_calls, self._warm, self._first = f_calls, warm, first
        self._queries, self._shared = queries, shared
        self._right, self._withdrawn = right, withdrawn
        self._rows, self._sequences, self._windows = rows, sequences, windows
        self._seconds = seconds
        self._nfe = nfe
        self._residual = residual
        self._unconverged = {"max_nfe": max_nfe, "nonfinite": nonfinite, "loosened": loosened}

    def started_warm(self, tokens: int) -> None:
        """So many tokens entered whose solves begin at fitted first states."""
        self._warm.inc(tokens)

    def looked_up(self, tokens: int) -> None:
        """It was looked whether others have solved so many tokens that begin a text."""
        self._queries.inc(tokens)

    def shared(self, tokens: int) -> None:
        """So many tokens were taken over, as others had solved them."""
        self._shared.inc(tokens)

    def guessed(self, *, right: int, withdrawn: int) -> None:
        """So many guesses of tokens to be drawn have turned out right, so many were withdrawn."""
        self._right.inc(right)
        self._withdrawn.inc(withdrawn)

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        """One call of f was made on ``rows`` tokens of ``sequences`` sequences."""
        self._f_calls.inc()
        self._rows.observe(rows)
        self._sequences.observe(sequences)
        self._seconds.observe(seconds)

    def windows(self, widths: Sequence[int]) -> None:
        """So many rows had each sequence in a call of f."""
        for width in widths:
            self._windows.observe(width)

    def began(self, residuals: Sequence[float]) -> None:
        """Tokens had their first call of f, at states with these relative residuals."""
        for residual in residuals:
            _observe_finite(self._first, residual)

    def solved(self, tokens: Sequence[Solved]) -> None:
        """Tokens were accepted."""
        for token in tokens:
            self._nfe.observe(token.nfe)
            _observe_finite(self._residual, token.residual)
            if token.status != "converged":
                self._unconverged[token.status].inc()


def _observe_finite(histogram: Histogram, value: float) -> None:
    """Leaves out what would make the histogram's sum, and so its mean, infinite for ever."""
    if math.isfinite(value):
        histogram.observe(value)
