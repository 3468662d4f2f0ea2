"""Errors of the load test.

LoadTestError             it cannot be carried out, or not to its end
└── ServerLost            the server has stopped answering
"""


class LoadTestError(Exception):
    """The load test cannot be carried out; the message says why."""


class ServerLost(LoadTestError):
    """The server has stopped answering; what was measured until then is kept."""
