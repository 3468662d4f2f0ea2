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
    if options.insecure:
        return None
    missing = []
    if options.tls_cert is None:
        missing.append("--tls-cert and --tls-key")
    if options.auth_file is None and options.tls_client_ca is None:
        missing.append("--auth-file (or --tls-client-ca)")
    needs = " and ".join(missing)
    if needs and not is_loopback(host):
        return (
            f"host must be of this machine alone (127.0.0.1, ::1, localhost), got {host}: to "
            f"listen beyond it give {needs}, or --insecure if something else protects the server"
        )
    if metrics_host is None or options.open_metrics or not needs or is_loopback(metrics_host):
        return None
    return (
        "metrics_host must be of this machine alone (127.0.0.1, ::1, localhost), got "
        f"{metrics_host}: to show metrics beyond it give {needs}, --open-metrics or --insecure"
    )
