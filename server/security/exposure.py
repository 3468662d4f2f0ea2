"""Whether a server may listen where it is told to: beyond this machine only if protected."""

import ipaddress

from server.security.options import SecurityOptions


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host; of names, ``localhost`` alone is taken so.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def exposure_problem(
    options: SecurityOptions, *, host: str, metrics_host: str | None
) -> str | None:
    """Why the server must not listen there, in one line that says what to change; None if it may.

    Args:
        options: of the server.
        host: where calls are answered.
        metrics_host: where metrics are; None without them.
    """
    for name, value in (("host", host), ("metrics_host", metrics_host)):
        if value is not None and not options.insecure and not is_loopback(value):
            return (
                f"{name} must be of this machine alone (127.0.0.1, ::1, localhost), got {value}: "
                "to listen beyond it give --insecure, and only where something else protects "
                "the server"
            )
    return None
