"""The trace that a call belongs to, as its client tells it: W3C Trace Context, nothing else.

Whoever writes logs, exemplars or spans asks here, so that they agree. Needs no OpenTelemetry.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PARENT_KEY = "traceparent"
STATE_KEY = "tracestate"

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_VERSION = "ff"
_SAMPLED = 1
_LONGEST_PARENT = 512
_LONGEST_STATE = 512
"""Bytes that everybody has to pass on; more may be dropped."""

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that a call belongs to.

    Attributes:
        trace_id: of its trace, 32 hexadecimal digits in lower case, not all 0.
        span_id: its own, 16 of them, not all 0.
        is_sampled: whether it is recorded, so that somebody may find it.
        state: what makers of tracing systems add, passed on as it is; may be empty.
    """

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""


def read_metadata(metadata: Metadata) -> TraceContext | None:
    """What a call's metadata tell; None where they tell nothing, or nothing well formed.

    Of several ``traceparent`` nobody can say which is meant, so that none is taken.
    """
    parents, states = [], []
    for key, value in metadata:
        if key == PARENT_KEY:
            parents.append(value)
        elif key == STATE_KEY:
            states.append(value)
    if len(parents) != 1 or not isinstance(parents[0], str):
        return None
    return read(parents[0], ",".join([state for state in states if isinstance(state, str)]))


def read(parent: str, state: str = "") -> TraceContext | None:
    """The span that a ``traceparent`` names, None where it is malformed.

    Args:
        parent: VERSION-TRACE-SPAN-FLAGS; a version to come may have more behind.
        state: of ``tracestate``; what is too long or not ASCII is dropped alone.
    """
    found = _PARENT.fullmatch(parent) if len(parent) <= _LONGEST_PARENT else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_known = version != _NO_VERSION and not (version == "00" and more)
    if not is_known or set(trace_id) == {"0"} or set(span_id) == {"0"}:
        return None
    is_good = len(state) <= _LONGEST_STATE and state.isascii() and state.isprintable()
    return TraceContext(
        trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state if is_good else ""
    )
