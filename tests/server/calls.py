"""Calls with the generated stubs, as any client makes them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from deqlm.v1 import (
    admin_pb2_grpc,
    common_pb2,
    generation_pb2_grpc,
    model_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2_grpc,
)

TIMEOUT_S = 60.0

TIGHT = common_pb2.SolverOptions(tol=1e-5, max_nfe=400)
"""Exact enough to compare log-probabilities, within what float32 can reach."""

ENDLESS = common_pb2.SolverOptions(tol=1e-30, max_nfe=1000)
"""No token converges: a call with these keeps its engine busy until it is cancelled."""


@dataclass(frozen=True)
class Failure:
    """A failed call, its details decoded."""

    code: str
    message: str
    reason: str
    fields: tuple[str, ...]
    resource: str
    retry_s: float | None
    metadata: dict[str, str]


class Stubs:
    """All services of a channel, for one owner."""

    def __init__(self, channel: grpc.Channel, owner: str = "") -> None:
        self.channel = channel
        self.metadata = (("deqlm-owner", owner),) if owner else ()
        self.scoring = scoring_pb2_grpc.ScoringServiceStub(channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)

    def score(self, text: Any = None, *, timeout: float = TIMEOUT_S, **fields: Any) -> Any:
        """Score text, ids, or nothing but the other fields."""
        if text is not None:
            fields["input"] = to_input(text)
        request = scoring_pb2.ScoreRequest(**fields)
        return self.scoring.Score(request, timeout=timeout, metadata=self.metadata)

    def begin_score(self, text: Any, **fields: Any) -> Any:
        """The same, without waiting: a future. It has no deadline, or an endless call before it
        would have it refused.
        """
        request = scoring_pb2.ScoreRequest(input=to_input(text), **fields)
        return self.scoring.Score.future(request, metadata=self.metadata)

    def stream(self, messages: Iterable[Any], **config: Any) -> Any:
        """Score a stream of text, lists of ids, or FLUSH."""
        return self.scoring.ScoreStream(
            stream_messages(messages, config), timeout=TIMEOUT_S, metadata=self.metadata
        )

    def generate(self, request: Any, timeout: float = TIMEOUT_S) -> Any:
        """Generate."""
        return self.generation.Generate(request, timeout=timeout, metadata=self.metadata)

    def create(self, **fields: Any) -> str:
        """Make a session; its id."""
        request = session_pb2.CreateSessionRequest(**fields)
        answer = self.sessions.CreateSession(request, timeout=TIMEOUT_S, metadata=self.metadata)
        return answer.session.session_id

    def get(self, session_id: str) -> Any:
        """A session."""
        request = session_pb2.GetSessionRequest(session_id=session_id)
        answer = self.sessions.GetSession(request, timeout=TIMEOUT_S, metadata=self.metadata)
        return answer.session

    def delete(self, session_id: str) -> None:
        """Delete a session."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        self.sessions.DeleteSession(request, timeout=TIMEOUT_S, metadata=self.metadata)

    def fork(self, session_id: str, **fields: Any) -> Any:
        """Copy a session."""
        request = session_pb2.ForkSessionRequest(session_id=session_id, **fields)
        answer = self.sessions.ForkSession(request, timeout=TIMEOUT_S, metadata=self.metadata)
        return answer.session

    def list(self, **fields: Any) -> Any:
        """A page of sessions."""
        request = session_pb2.ListSessionsRequest(**fields)
        return self.sessions.ListSessions(request, timeout=TIMEOUT_S, metadata=self.metadata)


FLUSH = object()


def to_input(value: Any) -> common_pb2.Input:
    """Text, or a list of ids."""
    if isinstance(value, str):
        return common_pb2.Input(text=value)
    return common_pb2.Input(token_ids=common_pb2.TokenIds(ids=value))


def stream_messages(messages: Iterable[Any], config: dict[str, Any]) -> Iterator[Any]:
    """The client's side of ScoreStream."""
    message = scoring_pb2.ScoreStreamRequest
    yield message(config=scoring_pb2.ScoreStreamConfig(**config))
    for item in messages:
        if item is FLUSH:
            yield message(flush=scoring_pb2.Flush())
        elif isinstance(item, str):
            yield message(text=item)
        elif isinstance(item, list):
            yield message(token_ids=common_pb2.TokenIds(ids=item))
        else:
            yield item


def failure(error: grpc.RpcError) -> Failure:
    """What a failed call tells."""
    status = status_pb2.Status()
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    status.ParseFromString(packed)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    resource, retry = error_details_pb2.ResourceInfo(), error_details_pb2.RetryInfo()
    retry_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif not (detail.Unpack(info) or detail.Unpack(bad)):
            detail.Unpack(resource)
    return Failure(
        code=error.code().name,
        message=error.details(),
        reason=info.reason,
        fields=tuple(violation.field for violation in bad.field_violations),
        resource=resource.resource_name,
        retry_s=retry_s,
        metadata=dict(info.metadata),
    )


def fails(call: Callable[[], Any]) -> Failure:
    """What a call tells that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return failure(caught.value)


def as_it_was(stubs: Stubs, session_id: str) -> tuple[Any, ...]:
    """Everything of a session that a failed call must not change."""
    view = stubs.get(session_id)
    return view.position, view.totals, view.busy, view.memory_bytes
