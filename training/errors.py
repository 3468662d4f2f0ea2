"""Errors of the training package.

TrainingError
├── OptionsError       an option has an impossible value, or two contradict each other
├── DataError          a text cannot be read, or is too short for what is asked
├── ResumeError        a run's state is missing, damaged, or of another run
├── DivergedError      the guard has ended the run
├── SaveError          the last state of a run could not be written
└── RankError          another process of the run has failed, is lost, or does not answer
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
    """The guard has ended the run: too many bad steps in a row, or one that was to stop it."""


class SaveError(TrainingError):
    """The last state of a run could not be written."""


class RankError(TrainingError):
    """Another process of the run has failed, is lost, or does not answer."""
