"""What figures refuse."""

from training.errors import TrainingError


class PlotError(TrainingError):
    """A figure cannot be drawn or written; the message says what would do."""
