"""Errors of profiles.

ProfilingError
├── ProfilesOff      the server has no folder for them
├── ProfileRunning   one is being taken
└── ProfileFailed    it could not be recorded or written; nothing is left of it
"""


class ProfilingError(Exception):
    """Base of why there is no profile."""


class ProfilesOff(ProfilingError):
    """The server has no folder for profiles."""

    def __init__(self) -> None:
        super().__init__("profile_dir must be set for profiles to be taken, got none")


class ProfileRunning(ProfilingError):
    """One profile at a time.

    Attributes:
        retry_after_s: when that one will be over.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("a profile is being taken; one can be at a time")
        self.retry_after_s = retry_after_s


class ProfileFailed(ProfilingError):
    """A profile could not be recorded or written, and nothing is left of it."""
