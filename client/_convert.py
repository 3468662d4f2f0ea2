"""Protobuf to and from the client's types; the only place that knows both."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2

from client import types
from client.errors import ErrorDetails, FieldViolation, InvalidArgument
from client.options import (
    Budget,
    BudgetPolicy,
    Flush,
    Input,
    Priority,
    SamplingOptions,
    SolverOptions,
    StopOptions,
    StreamPiece,
)
from deqlm.v1 import (
    common_pb2,
    generation_pb2,
    model_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)

_POLICY_TO_PB: Final[Mapping[BudgetPolicy, common_pb2.BudgetPolicy]] = {
    BudgetPolicy.BEST_EFFORT: common_pb2.BUDGET_POLICY_BEST_EFFORT,
    BudgetPolicy.ERROR: common_pb2.BUDGET_POLICY_ERROR,
}

_PRIORITY_TO_PB: Final[Mapping[Priority, common_pb2.Priority]] = {
    Priority.LOW: common_pb2.PRIORITY_LOW,
    Priority.NORMAL: common_pb2.PRIORITY_NORMAL,
    Priority.HIGH: common_pb2.PRIORITY_HIGH,
}

READY_SERVICE: Final = "deqlm.v1.ScoringService"
"""Service whose health tells readiness; that of the empty name tells that the process lives."""


# --- to protobuf ---


def input_to_pb(value: Input | None) -> common_pb2.Input | None:
    """Encode text or token ids; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        return common_pb2.Input(text=_unicode(value))
    return common_pb2.Input(token_ids=_token_ids(value))


def solver_to_pb(options: SolverOptions | None) -> common_pb2.SolverOptions | None:
    """Encode solver options; None stays None."""
    if options is None:
        return None
    policy = None if options.policy is None else _POLICY_TO_PB[options.policy]
    max_nfe = _unsigned("max_nfe", options.max_nfe)
    return common_pb2.SolverOptions(
        tol=options.tol, max_nfe=max_nfe, policy=policy, keep_tol=options.keep_tol
    )


def budget_to_pb(budget: Budget | None) -> common_pb2.Budget | None:
    """Encode a budget; None stays None."""
    if budget is None:
        return None
    max_calls = _unsigned("max_calls", budget.max_calls, bits=64)
    return common_pb2.Budget(max_time_s=budget.max_time_s, max_calls=max_calls)


def priority_to_pb(priority: Priority | None) -> common_pb2.Priority:
    """Encode a priority; None is for the server to choose."""
    return common_pb2.PRIORITY_UNSPECIFIED if priority is None else _PRIORITY_TO_PB[priority]


def score_request(
    *,
    input: Input | None,
    session_id: str | None,
    model: str,
    top_k: int | None,
    solver: SolverOptions | None,
    include_tokens: bool,
    candidates: Iterable[Input],
    budget: Budget | None,
    priority: Priority | None,
) -> scoring_pb2.ScoreRequest:
    """Build the request of Score."""
    return scoring_pb2.ScoreRequest(
        model=model,
        session_id=session_id,
        input=input_to_pb(input),
        top_k=_unsigned("top_k", top_k),
        solver=solver_to_pb(solver),
        include_tokens=include_tokens,
        candidates=[_required_input(candidate) for candidate in candidates],
        budget=budget_to_pb(budget),
        priority=priority_to_pb(priority),
    )


def stream_config(
    *,
    session_id: str | None,
    model: str,
    top_k: int | None,
    solver: SolverOptions | None,
    include_tokens: bool,
    budget: Budget | None,
    priority: Priority | None,
) -> scoring_pb2.ScoreStreamRequest:
    """Build the first message of ScoreStream."""
    config = scoring_pb2.ScoreStreamConfig(
        model=model,
        session_id=session_id,
        top_k=_unsigned("top_k", top_k),
        solver=solver_to_pb(solver),
        include_tokens=include_tokens,
        budget=budget_to_pb(budget),
        priority=priority_to_pb(priority),
    )
    return scoring_pb2.ScoreStreamRequest(config=config)


def stream_piece(piece: StreamPiece) -> scoring_pb2.ScoreStreamRequest:
    """Build a later message of ScoreStream."""
    if isinstance(piece, Flush):
        return scoring_pb2.ScoreStreamRequest(flush=scoring_pb2.Flush())
    if isinstance(piece, str):
        return scoring_pb2.ScoreStreamRequest(text=_unicode(piece))
    return scoring_pb2.ScoreStreamRequest(token_ids=_token_ids(piece))


def generate_request(
    *,
    prompt: Input | None,
    session_id: str | None,
    model: str,
    sampling: SamplingOptions | None,
    stop: StopOptions | None,
    logprobs: int | None,
    solver: SolverOptions | None,
    budget: Budget | None,
    priority: Priority | None,
) -> generation_pb2.GenerateRequest:
    """Build the request of Generate."""
    return generation_pb2.GenerateRequest(
        model=model,
        session_id=session_id,
        prompt=input_to_pb(prompt),
        sampling=None if sampling is None else _sampling_to_pb(sampling),
        stop=None if stop is None else _stop_to_pb(stop),
        logprobs=_unsigned("logprobs", logprobs),
        solver=solver_to_pb(solver),
        budget=budget_to_pb(budget),
        priority=priority_to_pb(priority),
    )


def tokenize_request(model: str, text: str) -> tokenizer_pb2.TokenizeRequest:
    """Build the request of Tokenize."""
    return tokenizer_pb2.TokenizeRequest(model=model, text=_unicode(text))


def detokenize_request(model: str, ids: Iterable[int]) -> tokenizer_pb2.DetokenizeRequest:
    """Build the request of Detokenize."""
    return tokenizer_pb2.DetokenizeRequest(model=model, token_ids=_token_ids(ids))


def _sampling_to_pb(options: SamplingOptions) -> generation_pb2.SamplingOptions:
    values = asdict(options)
    values["top_k"] = _unsigned("top_k", options.top_k)
    values["seed"] = _unsigned("seed", options.seed, bits=64)
    return generation_pb2.SamplingOptions(**values)


def _stop_to_pb(options: StopOptions) -> generation_pb2.StopOptions:
    values = asdict(options)
    values["stop_ids"] = [_token_id(token_id) for token_id in options.stop_ids]
    for name in ("max_tokens", "min_tokens"):
        values[name] = _unsigned(name, values[name])
    return generation_pb2.StopOptions(**values)


def _required_input(value: Input) -> common_pb2.Input:
    message = input_to_pb(value)
    assert message is not None
    return message


def _token_ids(ids: Iterable[int]) -> common_pb2.TokenIds:
    return common_pb2.TokenIds(ids=[_token_id(token_id) for token_id in ids])


def _token_id(token_id: int) -> int:
    checked = _unsigned("token_ids", token_id)
    assert checked is not None
    return checked


def _unsigned(name: str, value: int | None, *, bits: int = 32) -> int | None:
    """Refuse what the wire cannot carry; everything else is for the server to judge."""
    if value is None or 0 <= value < 2**bits:
        return value
    bound = f"must be in [0, {2**bits - 1}], got {value}"
    violation = FieldViolation(field=name, description=bound)
    raise InvalidArgument(f"{name} {bound}", details=ErrorDetails(violations=(violation,)))


def _unicode(text: str) -> str:
    """Refuse text that UTF-8 cannot carry, as arguments of other bytes become."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X} at character {error.start}"
        bound = f"must be Unicode, got the lone surrogate {code}"
        violation = FieldViolation(field="text", description=bound)
        details = ErrorDetails(violations=(violation,))
        raise InvalidArgument(f"text {bound}", details=details) from None
    return text


# --- from protobuf ---


def score(message: scoring_pb2.ScoreResponse) -> types.Score:
    """Decode the answer of Score."""
    return _copy(
        types.Score,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        call=totals(message.call),
        session=totals(message.session) if message.HasField("session") else None,
        solver=solver_report(message.solver),
        candidates=tuple(map(_candidate_score, message.candidates)),
        timing=_copy(types.Timing, message.timing),
        stopped_by=_stopped_by(message),
    )


def streamed_score(message: scoring_pb2.ScoreStreamResponse) -> types.StreamedScore:
    """Decode an answer of ScoreStream."""
    return _copy(
        types.StreamedScore,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        call=totals(message.call),
        session=totals(message.session),
        solver=solver_report(message.solver),
        timing=_copy(types.Timing, message.timing),
        stopped_by=_stopped_by(message),
    )


def generation_event(message: generation_pb2.GenerateResponse) -> types.GenerationEvent | None:
    """Decode an answer of Generate; None for an event this client does not know."""
    match message.WhichOneof("event"):
        case "started":
            prompt = totals(message.started.prompt)
            return _copy(types.GenerationStarted, message.started, prompt=prompt)
        case "token":
            alternatives = tuple(map(_alternative, message.token.alternatives))
            return _copy(types.GeneratedToken, message.token, alternatives=alternatives)
        case "finished":
            return _finished(message.finished)
    return None


def session(message: session_pb2.Session) -> types.SessionInfo:
    """Decode a session."""
    return _copy(
        types.SessionInfo,
        message,
        totals=totals(message.totals),
        create_time=_time(message.create_time),
        last_used_time=_time(message.last_used_time),
        expire_time=_time(message.expire_time),
        solver=solver_options(message.solver),
    )


def tokenized(message: tokenizer_pb2.TokenizeResponse) -> types.Tokenized:
    """Decode the answer of Tokenize."""
    tokens = tuple(_copy(types.Token, token) for token in message.tokens)
    return _copy(types.Tokenized, message, tokens=tokens)


def detokenized(message: tokenizer_pb2.DetokenizeResponse) -> types.Detokenized:
    """Decode the answer of Detokenize."""
    return _copy(types.Detokenized, message)


def model_info(message: model_pb2.ModelInfo) -> types.ModelInfo:
    """Decode what the server tells about a model."""
    shape = message.architecture
    return _copy(
        types.ModelInfo,
        message,
        architecture=_copy(types.Architecture, shape, cutoffs=tuple(shape.cutoffs)),
        tokenizer=_enum(types.TokenizerKind, message, "tokenizer"),
        default_solver=solver_options(message.default_solver),
        limits=_copy(types.Limits, message.limits),
    )


def health(message: health_pb2.HealthCheckResponse) -> types.HealthStatus:
    """Decode an answer of grpc.health.v1."""
    return types.HealthStatus(
        health_pb2.HealthCheckResponse.ServingStatus.Name(message.status).lower()
    )


def totals(message: common_pb2.Totals) -> types.Totals:
    """Decode sums over tokens."""
    return _copy(types.Totals, message)


def token_score(message: scoring_pb2.TokenScore) -> types.TokenScore:
    """Decode a scored token."""
    return _copy(
        types.TokenScore, message, alternatives=tuple(map(_alternative, message.alternatives))
    )


def solver_report(message: common_pb2.SolverReport) -> types.SolverReport:
    """Decode solver figures."""
    return _copy(
        types.SolverReport,
        message,
        status=_enum(types.SolverStatus, message, "status"),
        policy=_policy(message.policy),
    )


def solver_options(message: common_pb2.SolverOptions) -> SolverOptions:
    """Decode solver options."""
    return _copy(SolverOptions, message, policy=_policy(message.policy))


def _finished(message: generation_pb2.GenerationFinished) -> types.GenerationFinished:
    return _copy(
        types.GenerationFinished,
        message,
        reason=_enum(types.FinishReason, message, "reason"),
        call=totals(message.call),
        session=totals(message.session) if message.HasField("session") else None,
        solver=solver_report(message.solver),
        timing=_copy(types.Timing, message.timing),
    )


def _candidate_score(message: scoring_pb2.CandidateScore) -> types.CandidateScore:
    return _copy(
        types.CandidateScore,
        message,
        tokens=tuple(map(token_score, message.tokens)),
        totals=totals(message.totals),
        stopped_by=_stopped_by(message),
    )


def _alternative(message: common_pb2.TokenAlternative) -> types.TokenAlternative:
    return _copy(types.TokenAlternative, message)


def _stopped_by(message: Message) -> types.StoppedBy:
    return _enum(types.StoppedBy, message, "stopped_by")


def _policy(value: common_pb2.BudgetPolicy) -> BudgetPolicy | None:
    return next((policy for policy, pb in _POLICY_TO_PB.items() if pb == value), None)


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
