"""Where addresses lead to."""

from __future__ import annotations

import ipaddress


def is_here(address: str) -> bool:
    """Whether what is sent to an address of gRPC does not leave this machine.

    >>> [is_here(a) for a in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x", "ann.example:1")]
    [True, True, True, True, False]
    """
    target = address.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:")
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    if "," in target:  # several addresses
        return all(map(is_here, target.split(",")))
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
