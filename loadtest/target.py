"""Options that say which server is tested."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from client._channel import DEFAULT_ADDRESS
from client.commands._environment import ADDRESS_VARIABLE, CA_VARIABLE, METRICS_VARIABLE
from client.metrics_page import read_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which server it is, and how connections to it are encrypted.

    Attributes:
        address: server as HOST:PORT
        tls: encrypt; the other TLS options do so too
        tls_ca: authorities that the server's certificate must be of, in PEM
        tls_cert: the client's own certificate, in PEM
        tls_key: its private key
        send_token_unencrypted: send tokens even where anybody on the way can read them
    """

    address: str = field(
        default_factory=lambda: os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    )
    tls: bool = False
    tls_ca: Path | None = field(
        default_factory=lambda: (
            Path(os.environ[CA_VARIABLE]) if os.environ.get(CA_VARIABLE) else None
        )
    )
    tls_cert: Path | None = None
    tls_key: Path | None = None
    send_token_unencrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection(Target):
    """How the server is used.

    Attributes:
        model: model; empty for the server's default
        owner: owner of the sessions; empty for nobody
        owners: how many owners the requests are of, called OWNER-1 and so on when more than one
        token_file: file with the token that shows who calls; none for that of the environment
            (DEQLM_TOKEN), if there is one
        metrics: page of the server's metrics, whose counts are compared with the client's, as
            HOST:PORT or a URL; auto is http://HOST:9464/metrics, https with TLS, unless the
            environment (DEQLM_METRICS) names another; none compares nothing
    """

    model: str = ""
    owner: str = ""
    owners: int = 1
    token_file: Path | None = None
    metrics: str = field(default_factory=lambda: os.environ.get(METRICS_VARIABLE) or "auto")

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_range(self, "owners", 1, 1000)
        if self.metrics in ("auto", "none"):
            return
        try:
            read_place(self.metrics)
        except ValueError:
            raise ValueError(
                f"metrics must be auto, none, HOST:PORT or a URL, got {self.metrics or 'nothing'}"
            ) from None


def check_range(options: object, name: str, least: float, most: float) -> None:
    """Raises ValueError where a field is not within its bounds; NaN never is."""
    value = getattr(options, name)
    if not least <= value <= most:
        raise ValueError(f"{name} must be in [{least:g}, {most:g}], got {value:g}")
