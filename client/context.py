"""What a call carries of where it is made: the id of its request, and the span it belongs to.

>>> from client.context import request_id
>>> with request_id("order-17"):  # doctest: +SKIP
...     client.score("It was a dark night.")
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from client.errors import REQUEST_ID_KEY, ErrorDetails, FieldViolation, InvalidArgument

_FIT: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_request_id: ContextVar[str] = ContextVar("request_id", default="")


@contextmanager
def request_id(value: str) -> Iterator[None]:
    """Give the calls that are made inside an id, under which the server logs and traces them.

    Raises:
        InvalidArgument: it is not 1 to 128 letters, digits and ``._~:/+=@-``.
    """
    if not _FIT.fullmatch(value):
        bound = f"must be 1 to 128 letters, digits and ._~:/+=@-, got {value!r}"
        violation = FieldViolation(field="request_id", description=bound)
        raise InvalidArgument(f"request_id {bound}", details=ErrorDetails(violations=(violation,)))
    token = _request_id.set(value)
    try:
        yield
    finally:
        _request_id.reset(token)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata of a call that is made here and now."""
    given = _request_id.get()
    return (((REQUEST_ID_KEY, given),) if given else ()) + _trace_metadata()


def _trace_metadata() -> tuple[tuple[str, str], ...]:
    """The current span, where the program has one: only a program that imports them makes spans."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
