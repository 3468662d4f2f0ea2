"""Errors of the model package.

DeqModelError
├── ConfigError        a configuration contradicts itself or holds an impossible value
└── CheckpointError    a checkpoint is missing, damaged or does not fit its configuration
"""


class DeqModelError(ValueError):
    """Base of everything this package raises on purpose."""


class ConfigError(DeqModelError):
    """A configuration field has an impossible value, or two fields contradict each other."""


class CheckpointError(DeqModelError):
    """A checkpoint is missing, damaged, unsafe, or does not fit its configuration."""
