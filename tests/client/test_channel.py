"""What no call can carry is told before one is made."""

import re

import pytest

from client import _encode
from client._channel import owner_metadata
from client.aio import AsyncClient
from client.errors import InvalidArgument
from client.sync import Client


def test_an_owner_travels_as_metadata():
    assert owner_metadata("ann of 7~") == (("deqlm-owner", "ann of 7~"),)


@pytest.mark.parametrize(
    "address", ["", "host:0", "127.0.0.1:65536", "[::1]:99999", "dns:///a:70000"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_that_is_none(address, kind):
    problem = f"address must be HOST:PORT with a port in [1, 65535], got {address!r}"
    with pytest.raises(InvalidArgument, match=re.escape(problem)) as caught:
        kind(address)
    assert caught.value.violations[0].field == "address"


@pytest.mark.parametrize("address", ["host", "::1", "[::1]:65535", "unix:/a:70000", "dns:///a:1"])
def test_an_address(address):
    Client(address).close()


@pytest.mark.parametrize("owner", ["é", "a\nb", "\x7f", "\udcff"])
def test_an_owner_that_metadata_cannot_carry(owner):
    with pytest.raises(InvalidArgument, match="owner must be printable ASCII, got ") as caught:
        owner_metadata(owner)
    assert caught.value.violations[0].field == "owner"


@pytest.mark.parametrize(
    "build",
    [
        _encode.input_to_pb,
        _encode.stream_piece,
        lambda text: _encode.tokenize_request("", text),
    ],
    ids=["input", "piece", "tokenize"],
)
def test_text_that_is_no_unicode(build):
    problem = r"text must be Unicode, got the lone surrogate U\+DCFF at character 2"
    with pytest.raises(InvalidArgument, match=problem):
        build("ab\udcff")
