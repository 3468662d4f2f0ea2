"""How long texts are: distributions that options spell in one word, such as ``uniform:5:40``."""

import math
import random
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 1_000_000
"""Most that any size may be."""

_ARGUMENTS: Final = {
    "fixed": ("N",),
    "uniform": ("LEAST", "MOST"),
    "lognormal": ("MEDIAN", "SIGMA", "MOST"),
    "geometric": ("MEAN", "MOST"),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """A distribution over whole numbers from 1 on.

    >>> Sizes.of("fixed:12").draw(random.Random(1))
    12
    """

    name: str
    arguments: tuple[float, ...]

    @classmethod
    def of(cls, text: str) -> "Sizes":
        """Reads ``fixed:N``, ``uniform:LEAST:MOST`` and so on. Raises ValueError."""
        name, *given = text.split(":")
        if name not in _ARGUMENTS or len(given) != len(_ARGUMENTS[name]):
            raise ValueError(f"must be one of {spellings()}, got {text or 'nothing'}")
        try:
            numbers = tuple(map(float, given))
        except ValueError:
            raise ValueError(f"must be one of {spellings()} with numbers, got {text}") from None
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"must have finite numbers, got {text}")
        sizes = cls(name, numbers)
        sizes._check(text)
        return sizes

    def _check(self, text: str) -> None:
        sigma = self.arguments[1] if self.name == "lognormal" else 0.0
        sizes = [n for i, n in enumerate(self.arguments) if (self.name, i) != ("lognormal", 1)]
        if sigma < 0:
            raise ValueError(f"must have a SIGMA of at least 0, got {text}")
        if not all(1 <= size <= LONGEST for size in sizes):
            raise ValueError(f"must have sizes in [1, {LONGEST}], got {text}")
        if sizes != sorted(sizes):
            raise ValueError(f"must not have a bound below what it bounds, got {text}")

    def draw(self, by: random.Random) -> int:
        """One size."""
        if self.name == "fixed":
            return int(self.arguments[0])
        if self.name == "uniform":
            return by.randint(int(self.arguments[0]), int(self.arguments[1]))
        if self.name == "lognormal":
            median, sigma, most = self.arguments
            return max(1, min(int(most), round(by.lognormvariate(math.log(median), sigma))))
        mean, most = self.arguments
        if mean == 1:
            return 1
        tries = math.log(1.0 - by.random()) / math.log(1.0 - 1.0 / mean)
        return min(int(most), 1 + int(tries))


def spellings() -> str:
    """All distributions, as they are spelled."""
    return ", ".join(":".join((name, *names)) for name, names in _ARGUMENTS.items())
