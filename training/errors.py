"""Errors of the training package.

TrainingError
├── OptionsError       an option has an impossible value, or two contradict each other
├── DataError          a text cannot be read, or is too short for what is asked
├── ResumeError        a run's state is missing, damaged, or of another run
└── DivergedError      too many steps in a row gave no finite loss or gradient
"""


class TrainingError(ValueError):
    """Base of everything this package raises on purpose."""


class OptionsError(TrainingError):
    """An option has an impossible value, or two options contradict each other."""


class DataError(TrainingError):
    """A text cannot be read, or is too short for what is asked."""


class ResumeError(TrainingError):
    """A run's saved state is missing, damaged, or was made with other options."""


class DivergedError(TrainingError):
    """Too many steps in a row gave no finite loss or gradient."""
