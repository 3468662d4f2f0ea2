"""What the engine reports while it runs, for metrics."""

from collections.abc import Sequence
from typing import Protocol

from server.engine.solve import Solved


class Observer(Protocol):
    """Called on the engine's thread; must be quick and must not raise."""

    def started_warm(self, tokens: int) -> None:
        """So many tokens entered whose solves begin at fitted first states."""

    def looked_up(self, tokens: int) -> None:
        """It was looked whether others have solved so many tokens that begin a text."""

    def shared(self, tokens: int) -> None:
        """So many tokens were taken over, as others had solved them."""

    def guessed(self, *, right: int, withdrawn: int) -> None:
        """So many guesses of tokens to be drawn have turned out right, so many were withdrawn."""

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        """One call of f was made on ``rows`` tokens of ``sequences`` sequences."""

    def windows(self, widths: Sequence[int]) -> None:
        """So many rows had each sequence in that call."""

    def began(self, residuals: Sequence[float]) -> None:
        """Tokens had their first call of f, at states with these relative residuals."""

    def solved(self, tokens: Sequence[Solved]) -> None:
        """Tokens were accepted."""


class Unobserved:
    """An observer that looks away."""

    def started_warm(self, tokens: int) -> None:
        """Ignores them."""

    def looked_up(self, tokens: int) -> None:
        """Ignores them."""

    def shared(self, tokens: int) -> None:
        """Ignores them."""

    def guessed(self, *, right: int, withdrawn: int) -> None:
        """Ignores them."""

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        """Ignores it."""

    def windows(self, widths: Sequence[int]) -> None:
        """Ignores them."""

    def began(self, residuals: Sequence[float]) -> None:
        """Ignores them."""

    def solved(self, tokens: Sequence[Solved]) -> None:
        """Ignores them."""
