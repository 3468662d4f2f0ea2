"""Checks that option classes share; each raises OptionsError naming field, value and bound."""

import math
import re

from training.errors import OptionsError

MOST_SEED = 2**32 - 1
"""As sentencepiece's generator has it."""
MOST_THREADS = 4096
MOST_SECONDS = 10_000_000


def at_least(options: object, bound: int, *names: str) -> None:
    """Raises unless the named fields are ``bound`` or more."""
    for name in names:
        if getattr(options, name) < bound:
            raise OptionsError(f"{name} must be at least {bound}, got {getattr(options, name)}")


def within(options: object, low: int, high: int, *names: str) -> None:
    """Raises unless the named fields are from ``low`` to ``high``, both included."""
    for name in names:
        value = getattr(options, name)
        if not low <= value <= high:
            raise OptionsError(f"{name} must be in [{low}, {high}], got {value}")


def seconds(options: object, *names: str) -> None:
    """Raises unless the named fields are times that every clock of the system can count."""
    for name in names:
        value = getattr(options, name)
        if not 0 < value <= MOST_SECONDS:
            raise OptionsError(
                f"{name} must be above 0 and at most {MOST_SECONDS:,} seconds, got {value}"
            )


def positive(options: object, *names: str) -> None:
    """Raises unless the named fields are finite and above zero."""
    for name in names:
        value = getattr(options, name)
        if not (math.isfinite(value) and value > 0):
            raise OptionsError(f"{name} must be a finite number above 0, got {value}")


def not_negative(options: object, *names: str) -> None:
    """Raises unless the named fields are finite and zero or more."""
    for name in names:
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise OptionsError(f"{name} must be a finite number from 0, got {value}")


def share(options: object, *names: str, one: bool = False) -> None:
    """Raises unless the named fields are in [0, 1), or in [0, 1] if ``one``."""
    for name in names:
        value = getattr(options, name)
        if not (0 <= value < 1 or (one and value == 1)):
            raise OptionsError(f"{name} must be in [0, 1{']' if one else ')'}, got {value}")


def device(options: object, name: str) -> None:
    """Raises unless the named field is what a device can be called; it may still not be there."""
    value = getattr(options, name)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise OptionsError(f"{name} must be cpu, cuda or cuda:N, got {value or 'nothing'}")
