"""What the client is asked, as protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Final

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
from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, tokenizer_pb2

POLICIES: Final[Mapping[BudgetPolicy, common_pb2.BudgetPolicy]] = {
    BudgetPolicy.BEST_EFFORT: common_pb2.BUDGET_POLICY_BEST_EFFORT,
    BudgetPolicy.ERROR: common_pb2.BUDGET_POLICY_ERROR,
}

_PRIORITIES: Final[Mapping[Priority, common_pb2.Priority]] = {
    Priority.LOW: common_pb2.PRIORITY_LOW,
    Priority.NORMAL: common_pb2.PRIORITY_NORMAL,
    Priority.HIGH: common_pb2.PRIORITY_HIGH,
}


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
    policy = None if options.policy is None else POLICIES[options.policy]
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
    return common_pb2.PRIORITY_UNSPECIFIED if priority is None else _PRIORITIES[priority]


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
    idempotency_key: str = "",
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
        idempotency_key=_unicode(idempotency_key),
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
    idempotency_key: str = "",
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
        idempotency_key=_unicode(idempotency_key),
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
