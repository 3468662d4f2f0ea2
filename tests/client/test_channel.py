"""What no call can carry is told before one is made."""

import pytest

from client import _encode
from client._channel import owner_metadata
from client.errors import InvalidArgument


def test_an_owner_travels_as_metadata():
    assert owner_metadata("ann of 7~") == (("deqlm-owner", "ann of 7~"),)


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
