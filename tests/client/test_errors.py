"""Statuses and their details become exceptions."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from client import errors
from client.aio import AsyncClient
from tests.client.fake_server import Failure

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

DETAILS = (
    error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="deqlm", metadata={"key": "value"}),
    error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="bad")
        ]
    ),
    error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    error_details_pb2.ResourceInfo(resource_type="session", resource_name="s9"),
)


def test_every_status_but_ok_has_its_own_exception():
    assert set(errors.ERRORS) == set(CODES)
    assert len(set(errors.ERRORS.values())) == len(CODES)
    assert all(issubclass(error, errors.DeqlmError) for error in errors.ERRORS.values())


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_a_status_arrives_as_its_exception(fake, client, code):
    fake.queue("DeleteSession", Failure(code=code, message="what happened"))
    with pytest.raises(errors.ERRORS[code], match="what happened") as caught:
        client.delete_session("s1")
    assert type(caught.value) is errors.ERRORS[code]
    assert caught.value.code is code


def _assert_details(error: errors.DeqlmError) -> None:
    assert error.reason == "SOME_REASON"
    assert error.details.metadata == {"key": "value"}
    assert error.violations == (errors.FieldViolation(field="sampling.top_p", description="bad"),)
    assert error.retry_after_s == 1.5
    assert error.resource == "s9"


def test_details_are_decoded(fake, client):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.ABORTED, details=DETAILS))
    with pytest.raises(errors.Aborted, match="scripted") as caught:
        client.delete_session("s1")
    _assert_details(caught.value)


async def test_details_are_decoded_by_the_asyncio_client(fake):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.ABORTED, details=DETAILS))
    async with AsyncClient(fake.address) as client:
        with pytest.raises(errors.Aborted, match="scripted") as caught:
            await client.delete_session("s1")
    _assert_details(caught.value)


def test_an_error_without_details_has_empty_ones(fake, client):
    fake.queue("DeleteSession", lambda _, context: context.abort(grpc.StatusCode.NOT_FOUND, "no"))
    with pytest.raises(errors.NotFound, match="no") as caught:
        client.delete_session("s1")
    assert caught.value.details == errors.ErrorDetails()


def test_a_mangled_trailer_costs_the_details_alone(fake, client):
    def abort(_, context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "still told")

    fake.queue("DeleteSession", abort)
    with pytest.raises(errors.NotFound, match="still told") as caught:
        client.delete_session("s1")
    assert caught.value.details == errors.ErrorDetails()
