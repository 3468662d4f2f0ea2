"""Options of a server that say what it tells about the calls it answers."""

from dataclasses import dataclass
from typing import Literal

from server.security.options import SecurityOptions

LogFormat = Literal["human", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions(SecurityOptions):
    """What a server tells about its calls.

    Attributes:
        log_format: human is a line for people, json one object a line for machines.
    """

    log_format: LogFormat = "human"
