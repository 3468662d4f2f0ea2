"""Options of a server that say what it tells about the calls it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.security.options import SecurityOptions

LogFormat = Literal["human", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions(SecurityOptions):
    """What a server tells about its calls.

    Attributes:
        log_format: human is a line for people, json one object a line for machines.
        trace_endpoint: collector of OpenTelemetry that gets the spans of calls, as http://HOST:PORT (OTLP over gRPC), or https:// for TLS; empty sends none.
        trace_ratio: share of the calls that are traced, of those whose clients name no trace; where one does, it says whether.
        profile_dir: folder to which profiles are written (deqlm profile, SIGUSR2); none takes none.
    """  # noqa: E501 - the lines are the help texts

    log_format: LogFormat = "human"
    trace_endpoint: str = ""
    trace_ratio: float = 1.0
    profile_dir: Path | None = None
