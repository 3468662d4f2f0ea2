"""All that protects a server, made of its options: what the wiring needs to know of it."""

import asyncio
import ssl
from collections.abc import Callable

import grpc

from server.security.access import TOKEN_KEY, Access, check_rights, kind_of
from server.security.audit import Audit
from server.security.counts import SecurityCounts
from server.security.errors import SecurityError
from server.security.gate import Gate
from server.security.options import SecurityOptions
from server.security.reloading import Reloadable, Reloader
from server.security.rights import METRICS
from server.security.tls import LiveCertificates


class Guarding:
    """Who may call, with which certificates, as the files say now."""

    def __init__(self, options: SecurityOptions, counts: SecurityCounts) -> None:
        """Read the files.

        Raises:
            SecurityFileError: one is not as it must be.
        """
        self._options, self._counts = options, counts
        self._access = Access(options)
        self.audit = Audit(options.audit_log)
        """Has a line for each act of an administrator."""
        self._certificates: LiveCertificates | None = None
        things: list[tuple[str, Reloadable]] = []
        if options.auth_file is not None:
            things.append(("principals", self._access))
        if options.tls_cert is not None:
            certificates = self._certificates = LiveCertificates(options)
            counts.watch_expiry(lambda: certificates.expiry)
            things.append(("certificates", certificates))
        self.gate = Gate(options, self._access, counts, self.audit)
        self.reloader = Reloader(things, counts, self.audit)
        self.has_files = bool(things)
        """Whether there is something to read anew."""

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Have a server listen; returns the port. Raises RuntimeError if it cannot."""
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificates.credentials())

    async def run(self) -> None:
        """Look for ever after files that change, and after calls whose callers do."""
        await asyncio.gather(self.reloader.run(), self.gate.open_calls.run())

    @property
    def http_context(self) -> Callable[[], ssl.SSLContext] | None:
        """What the metrics' port encrypts a new connection with; None if it does not."""
        return None if self._certificates is None else self._certificates.http_context

    @property
    def allow_metrics(self) -> Callable[[str | None], None] | None:
        """Raises SecurityError unless a header shows somebody who may see metrics; None: all may.

        Where certificates alone tell who calls, the connection has seen to it.
        """
        is_open = self._options.open_metrics or self._options.auth_file is None
        return None if is_open else self._allow_metrics

    def _allow_metrics(self, header: str | None) -> None:
        metadata = () if header is None else ((TOKEN_KEY, header),)
        try:
            check_rights(self._access.identify(metadata, {}, ""), METRICS, "metrics")
        except SecurityError as error:
            self._counts.turned_away(kind_of(error))
            raise
