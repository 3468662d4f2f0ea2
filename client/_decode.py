"""What the server answers, as the client's types."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2

from client import resources, results
from client._encode import POLICIES
from client.options import BudgetPolicy, SolverOptions
from deqlm.v1 import (
    admin_pb2,
    common_pb2,
    generation_pb2,
    model_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)


def score(message: scoring_pb2.ScoreResponse) -> results.Score:
    """Decode the answer of Score."""
    return _copy(
        results.Score,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        call=totals(message.call),
        session=totals(message.session) if message.HasField("session") else None,
        solver=solver_report(message.solver),
        candidates=tuple(map(_candidate_score, message.candidates)),
        timing=_copy(results.Timing, message.timing),
        stopped_by=_stopped_by(message),
        kept=_kept(message),
    )


def streamed_score(message: scoring_pb2.ScoreStreamResponse) -> results.StreamedScore:
    """Decode an answer of ScoreStream."""
    return _copy(
        results.StreamedScore,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        call=totals(message.call),
        session=totals(message.session),
        solver=solver_report(message.solver),
        timing=_copy(results.Timing, message.timing),
        stopped_by=_stopped_by(message),
        kept=_kept(message),
    )


def generation_event(message: generation_pb2.GenerateResponse) -> results.GenerationEvent | None:
    """Decode an answer of Generate; None for an event this client does not know."""
    match message.WhichOneof("event"):
        case "started":
            prompt = totals(message.started.prompt)
            return _copy(results.GenerationStarted, message.started, prompt=prompt)
        case "token":
            alternatives = tuple(map(_alternative, message.token.alternatives))
            return _copy(results.GeneratedToken, message.token, alternatives=alternatives)
        case "finished":
            return _finished(message.finished)
    return None


def session(message: session_pb2.Session) -> resources.SessionInfo:
    """Decode a session."""
    return _copy(
        resources.SessionInfo,
        message,
        totals=totals(message.totals),
        create_time=_time(message.create_time),
        last_used_time=_time(message.last_used_time),
        expire_time=_time(message.expire_time),
        solver=solver_options(message.solver),
    )


def tokenized(message: tokenizer_pb2.TokenizeResponse) -> resources.Tokenized:
    """Decode the answer of Tokenize."""
    tokens = tuple(_copy(resources.Token, token) for token in message.tokens)
    return _copy(resources.Tokenized, message, tokens=tokens)


def detokenized(message: tokenizer_pb2.DetokenizeResponse) -> resources.Detokenized:
    """Decode the answer of Detokenize."""
    return _copy(resources.Detokenized, message)


def check(message: admin_pb2.CheckInvariantsResponse) -> resources.Check:
    """Decode what a look at a server's invariants has found."""
    return _copy(resources.Check, message, problems=tuple(message.problems))


def profile(message: admin_pb2.ProfileResponse) -> resources.Profile:
    """Decode where a profile is."""
    return _copy(resources.Profile, message, files=tuple(message.files))


def model_info(message: model_pb2.ModelInfo) -> resources.ModelInfo:
    """Decode what the server tells about a model."""
    shape = message.architecture
    return _copy(
        resources.ModelInfo,
        message,
        architecture=_copy(resources.Architecture, shape, cutoffs=tuple(shape.cutoffs)),
        tokenizer=_enum(resources.TokenizerKind, message, "tokenizer"),
        default_solver=solver_options(message.default_solver),
        limits=_copy(resources.Limits, message.limits),
    )


def health(message: health_pb2.HealthCheckResponse) -> resources.HealthStatus:
    """Decode an answer of grpc.health.v1."""
    return resources.HealthStatus(
        health_pb2.HealthCheckResponse.ServingStatus.Name(message.status).lower()
    )


def totals(message: common_pb2.Totals) -> results.Totals:
    """Decode sums over tokens."""
    return _copy(results.Totals, message)


def token_score(message: scoring_pb2.TokenScore) -> results.TokenScore:
    """Decode a scored token."""
    return _copy(
        results.TokenScore, message, alternatives=tuple(map(_alternative, message.alternatives))
    )


def solver_report(message: common_pb2.SolverReport) -> results.SolverReport:
    """Decode solver figures."""
    return _copy(
        results.SolverReport,
        message,
        status=_enum(results.SolverStatus, message, "status"),
        policy=_policy(message.policy),
    )


def solver_options(message: common_pb2.SolverOptions) -> SolverOptions:
    """Decode solver options."""
    return _copy(SolverOptions, message, policy=_policy(message.policy))


def _finished(message: generation_pb2.GenerationFinished) -> results.GenerationFinished:
    return _copy(
        results.GenerationFinished,
        message,
        reason=_enum(results.FinishReason, message, "reason"),
        call=totals(message.call),
        session=totals(message.session) if message.HasField("session") else None,
        solver=solver_report(message.solver),
        timing=_copy(results.Timing, message.timing),
        kept=_kept(message),
    )


def _candidate_score(message: scoring_pb2.CandidateScore) -> results.CandidateScore:
    return _copy(
        results.CandidateScore,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        totals=totals(message.totals),
        stopped_by=_stopped_by(message),
    )


def _alternative(message: common_pb2.TokenAlternative) -> results.TokenAlternative:
    return _copy(results.TokenAlternative, message)


def _stopped_by(message: Message) -> results.StoppedBy:
    return _enum(results.StoppedBy, message, "stopped_by")


def _kept(message: Message) -> results.Kept:
    return _enum(results.Kept, message, "kept")


def _policy(value: common_pb2.BudgetPolicy) -> BudgetPolicy | None:
    return next((policy for policy, pb in POLICIES.items() if pb == value), None)


def _enum(enum: type[_E], message: Message, name: str) -> _E:
    """Read an enum field by the names of its values; one that is newer than this client, as 0."""
    descriptor = message.DESCRIPTOR.fields_by_name[name].enum_type
    assert descriptor is not None, f"{name} is no enum"
    values = descriptor.values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    value = values.get(getattr(message, name), values[0])
    return enum(value.name.removeprefix(prefix).lower())


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def _copy(cls: type[_T], message: Message, **given: object) -> _T:
    """Make a dataclass from the message's fields of the same names, except those given.

    A scalar field with presence that is not set becomes None.
    """
    values: dict[str, Any] = given
    for name, has_presence in _plan(cast(Hashable, cls), message.DESCRIPTOR):
        if name not in given:
            absent = has_presence and not message.HasField(name)
            values[name] = None if absent else getattr(message, name)
    return cls(**values)


@cache
def _plan(cls: Any, descriptor: Descriptor) -> tuple[tuple[str, bool], ...]:
    """Name and presence of each field; kept, because tokens come by the ten thousand."""
    by_name = descriptor.fields_by_name
    return tuple((item.name, by_name[item.name].has_presence) for item in fields(cls))
