"""W3C Trace Context in a call's metadata."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tracecontext import TraceContext, read, read_metadata

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read():
    assert read(PARENT) == TraceContext(TRACE, SPAN, is_sampled=True)
    assert read(f"00-{TRACE}-{SPAN}-00") == TraceContext(TRACE, SPAN, is_sampled=False)
    assert read(f"00-{TRACE}-{SPAN}-03").is_sampled, "other flags do not matter"
    assert read(f"cc-{TRACE}-{SPAN}-01-what-else").trace_id == TRACE, "of a version to come"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT + "\n",
        PARENT + "-more",
        PARENT.replace("00-4", "ff-4"),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        "cc" + PARENT[2:] + "-" + "x" * 500,
    ],
)
def test_what_is_malformed_is_none(parent):
    assert read(parent) is None


@given(st.text() | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", fullmatch=True))
def test_whatever_comes_is_read_or_is_not(parent):
    found = read(parent)
    if found is not None:
        assert found.trace_id in parent
        assert len(found.trace_id) == 32


def test_metadata_with_one_parent():
    metadata = [("a", "b"), ("traceparent", PARENT), ("tracestate", "x=1"), ("tracestate", "y=2")]
    assert read_metadata(metadata) == TraceContext(TRACE, SPAN, is_sampled=True, state="x=1,y=2")


def test_metadata_with_none_two_or_bytes():
    assert read_metadata([]) is None
    assert read_metadata([("traceparent", PARENT), ("traceparent", PARENT)]) is None
    assert read_metadata([("traceparent", PARENT.encode())]) is None


@pytest.mark.parametrize("state", ["x=" + "1" * 511, "x=\n", "x=é"])
def test_a_bad_state_is_dropped_alone(state):
    assert read_metadata([("traceparent", PARENT), ("tracestate", state)]).state == ""
