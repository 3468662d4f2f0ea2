"""The page of a server's metrics: fetched, parsed, and told from anything else."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PORT = 9464
_PATIENCE_S = 10.0
_MOST_BYTES = 1 << 24
_PORTION = 1 << 16

Labels = tuple[tuple[str, str], ...]


class PageError(Exception):
    """There is no page of metrics to be had; the message says why, and what to change."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where metrics are.

    Attributes:
        host: name or address.
        port: TCP port.
        is_encrypted: whether by HTTPS.
        path: of the page.
    """

    host: str
    port: int
    is_encrypted: bool
    path: str

    @property
    def url(self) -> str:
        """It, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self.is_encrypted else "http"
        return f"{scheme}://{host}:{self.port}{self.path}"


def read_place(text: str, *, is_encrypted: bool = False) -> Place:
    """The place that HOST:PORT, HOST or a URL names.

    Raises:
        ValueError: it is none of them.

    >>> read_place("127.0.0.1:9464").url
    'http://127.0.0.1:9464/metrics'
    >>> read_place("https://example.org").url
    'https://example.org:9464/metrics'
    """
    parts = urlsplit(text if "://" in text else f"//{text}")
    port = parts.port  # which raises ValueError itself
    if parts.scheme not in ("", "http", "https") or not parts.hostname:
        raise ValueError(text)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(text)
    return Place(
        host=parts.hostname,
        port=DEFAULT_PORT if port is None else port,
        is_encrypted=is_encrypted or parts.scheme == "https",
        path=parts.path if parts.path not in ("", "/") else "/metrics",
    )


@dataclass(frozen=True, slots=True)
class Page:
    """What a server told.

    Attributes:
        instant: at which it did, of the monotonic clock.
        samples: values by name and labels, these in the order of their names.
    """

    instant: float
    samples: Mapping[str, Mapping[Labels, float]]

    def series(self, name: str) -> Mapping[Labels, float]:
        """All samples of a name; empty where there is none."""
        return self.samples.get(name, {})


def tls_context(
    ca: Path | str | None, cert: Path | str | None, key: Path | str | None
) -> ssl.SSLContext:
    """What a connection by HTTPS is checked with.

    Args:
        ca: authorities that the server's certificate must be of, in PEM; None for the system's.
        cert: the client's own certificate, if it needs one.
        key: its private key, without a password.

    Raises:
        ValueError: a file is missing, cannot be read, or is not what it should be; says which.
    """
    if (cert is None) != (key is None):
        raise ValueError("a certificate and its key go together: give both, or neither")
    named = f"{ca}"
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            named = f"{cert} with {key}"
            context.load_cert_chain(cert, key, password="")  # or OpenSSL asks the terminal for one
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"cannot read {named}: {error.strerror or error}") from None
    return context


def fetch(place: Place, *, token: str | None, context: ssl.SSLContext | None) -> Page:
    """Read the page. Raises PageError."""
    status, reason, body = _get(place, token, context)
    if status in (401, 403):
        raise PageError(
            f"{place.url} does not show its metrics to this caller ({status} {reason}); give "
            "--token-file FILE, or the environment variable DEQLM_TOKEN, with a token that has "
            "the right metrics"
        )
    if status != 200:
        raise PageError(f"{place.url} answers {status} {reason}; {_HINT}")
    page = Page(time.monotonic(), parse(body, place))
    if not page.series("deqlm_ready"):
        raise PageError(f"{place.url} is not a deqlm server's: it has no deqlm_ready; {_HINT}")
    return page


_HINT = "`deqlm serve` logs where its metrics are, and --metrics names the place"


def _get(place: Place, token: str | None, context: ssl.SSLContext | None) -> tuple[int, str, bytes]:
    connection: http.client.HTTPConnection
    if place.is_encrypted:
        connection = http.client.HTTPSConnection(
            place.host, place.port, timeout=_PATIENCE_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(place.host, place.port, timeout=_PATIENCE_S)
    headers = {"Accept": "text/plain"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("GET", place.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.reason, _read(answer, place)
    except ssl.SSLError as error:
        raise PageError(
            f"no encrypted connection to {place.url} ({error.reason or error}); look at --tls-ca, "
            "or name http://"
        ) from None
    except OSError as error:
        told = error.strerror or str(error) or "no answer in time"
        raise PageError(f"nothing answers at {place.url} ({told}); {_HINT}") from None
    except (http.client.HTTPException, ValueError) as error:
        kind = type(error).__name__
        raise PageError(f"{place.url} does not speak HTTP ({kind}); {_HINT}") from None
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse, place: Place) -> bytes:
    """All of it: neither more than anybody needs, nor for longer than anybody waits."""
    until, parts, size = time.monotonic() + _PATIENCE_S, [], 0
    while part := answer.read1(_PORTION):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise PageError(f"{place.url} tells more than {_MOST_BYTES >> 20} MiB; {_HINT}")
        if time.monotonic() > until:
            raise PageError(f"{place.url} takes longer than {_PATIENCE_S:g} s to answer")
    if answer.length:
        raise PageError(f"{place.url} ended in the middle of its answer")
    return b"".join(parts)


def parse(body: bytes, place: Place) -> dict[str, dict[Labels, float]]:
    """Samples by name and labels. Raises PageError for what is not in Prometheus' format."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(body.decode("utf-8")):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                samples.setdefault(sample.name, {})[labels] = float(sample.value)
    except Exception:  # whatever the parser makes of what was never meant for it
        raise PageError(f"{place.url} does not tell metrics as Prometheus reads them") from None
    return samples
