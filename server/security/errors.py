"""Errors of who may do what, and how much of it.

SecurityError
├── Unauthenticated     nobody that the server knows
├── PermissionMissing   a right is missing, or somebody else is named as the owner
└── QuotaExceeded       more than the principal may use
"""


class SecurityFileError(ValueError):
    """A file of certificates or of those who may call cannot be used; the message names it."""


class SecurityError(Exception):
    """Base of what callers are told who may not do what they asked for."""


class Unauthenticated(SecurityError):
    """The caller is not known; all get the same text, so that nobody can find out by trying.

    Attributes:
        kind: why, for metrics and the log alone.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(
            "the caller must be known: send the metadata `authorization: Bearer TOKEN`, or connect "
            "with a client certificate that the server knows"
        )
        self.kind = kind


class PermissionMissing(SecurityError):
    """The principal may not do this."""


class QuotaExceeded(SecurityError):
    """The principal has used up what it may.

    Attributes:
        quota: which, for metrics.
        retry_after_s: when to try again.
    """

    def __init__(self, message: str, *, quota: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.quota = quota
        self.retry_after_s = retry_after_s
