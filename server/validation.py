"""The one place where the fields of a request are checked, before anything is queued.

Pure functions from a request to plain values; each raises InvalidFields with every field that is
out of bounds, by name, bound and value.
"""

from dataclasses import dataclass
from typing import Final

from deqlm.v1 import generation_pb2, scoring_pb2, session_pb2, tokenizer_pb2
from server import bounds
from server.bounds import Budget, Checks, InputValue
from server.config import RequestLimits
from server.engine.solve import Solve

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFields:
    """What a ``ScoreRequest`` asks for."""

    input: InputValue | None
    candidates: tuple[InputValue, ...]
    top_k: int
    solve: Solve
    include_tokens: bool
    budget: Budget
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFields:
    """What a ``ScoreStreamConfig`` asks for; the budget is each response's."""

    top_k: int
    solve: Solve
    include_tokens: bool
    budget: Budget
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateFields:
    """What a ``GenerateRequest`` asks for; ``seed`` is None when the server may choose."""

    prompt: InputValue | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    logprobs: int
    solve: Solve
    budget: Budget
    priority: int


def check_score(
    request: scoring_pb2.ScoreRequest, *, limits: RequestLimits, n_token: int, solve: Solve
) -> ScoreFields:
    """Fields of a Score call; ``solve`` is what unset solver options mean."""
    checks = Checks()
    count = len(request.candidates)
    checks.require(
        count <= limits.max_candidates, "candidates", f"at most {limits.max_candidates}", count
    )
    changes = request.HasField("session_id") and not request.candidates
    bounds.idempotency_key(checks, request.idempotency_key, may_be_set=changes)
    if not request.HasField("input") and not request.candidates:
        checks.add("input", "must be set when there are no candidates")
    value = None
    if request.HasField("input"):
        value = bounds.input_value(checks, request.input, "input", limits=limits, n_token=n_token)
    candidates = [
        bounds.input_value(
            checks, candidate, f"candidates[{index}]", limits=limits, n_token=n_token
        )
        for index, candidate in enumerate(request.candidates[: limits.max_candidates])
    ]
    fields = ScoreFields(
        input=value,
        candidates=tuple(candidates),
        top_k=bounds.top_k(checks, "top_k", request.top_k, limits),
        solve=bounds.solve(checks, request.solver, solve, limits),
        include_tokens=bounds.given(request, "include_tokens", True),
        budget=bounds.budget(checks, request.budget),
        priority=bounds.priority(checks, request.priority),
    )
    checks.done()
    return fields


def check_stream_config(
    config: scoring_pb2.ScoreStreamConfig, *, limits: RequestLimits, solve: Solve
) -> StreamFields:
    """Fields of the first message of ScoreStream."""
    checks = Checks()
    fields = StreamFields(
        top_k=bounds.top_k(checks, "config.top_k", config.top_k, limits),
        solve=bounds.solve(checks, config.solver, solve, limits, prefix="config.solver"),
        include_tokens=bounds.given(config, "include_tokens", True),
        budget=bounds.budget(checks, config.budget, prefix="config."),
        priority=bounds.priority(checks, config.priority, prefix="config."),
    )
    checks.done()
    return fields


def check_stream_message(
    message: scoring_pb2.ScoreStreamRequest, *, limits: RequestLimits, n_token: int
) -> None:
    """A later message of ScoreStream; empty text and no ids are allowed, and change nothing."""
    checks = Checks()
    kind = message.WhichOneof("kind")
    if kind == "text":
        bounds.text_length(checks, message.text, "text", limits)
    elif kind == "token_ids":
        bounds.token_ids(
            checks, message.token_ids.ids, "token_ids.ids", limits=limits, n_token=n_token
        )
    elif kind == "config":
        checks.add("config", "must be the first message only, got another one")
    elif kind is None:
        checks.add("kind", "must be text, token_ids or flush, got nothing")
    checks.done()


def check_generate(
    request: generation_pb2.GenerateRequest, *, limits: RequestLimits, n_token: int, solve: Solve
) -> GenerateFields:
    """Fields of a Generate call."""
    checks = Checks()
    sampling, stop = request.sampling, request.stop
    prompt = None
    if request.HasField("prompt"):
        prompt = bounds.input_value(
            checks, request.prompt, "prompt", limits=limits, n_token=n_token
        )
    changes = request.HasField("session_id")
    bounds.idempotency_key(checks, request.idempotency_key, may_be_set=changes)
    bounds.sampling(checks, sampling)
    bounds.stop_strings(checks, stop.stop_strings, limits)
    bounds.stop_ids(checks, stop, n_token)
    max_tokens = bounds.given(stop, "max_tokens", limits.default_max_tokens)
    bound = f"in [1, {limits.max_tokens}]"
    checks.require(1 <= max_tokens <= limits.max_tokens, "stop.max_tokens", bound, max_tokens)
    bound = f"at most max_tokens = {max_tokens}"
    checks.require(stop.min_tokens <= max_tokens, "stop.min_tokens", bound, stop.min_tokens)
    fields = GenerateFields(
        prompt=prompt,
        temperature=bounds.given(sampling, "temperature", 1.0),
        top_k=sampling.top_k,
        top_p=bounds.given(sampling, "top_p", 1.0),
        min_p=sampling.min_p,
        repetition_penalty=bounds.given(sampling, "repetition_penalty", 1.0),
        seed=bounds.given(sampling, "seed", None),
        stop_strings=tuple(stop.stop_strings),
        stop_ids=frozenset(stop.stop_ids),
        max_tokens=max_tokens,
        min_tokens=stop.min_tokens,
        ignore_eos=stop.ignore_eos,
        logprobs=bounds.top_k(checks, "logprobs", request.logprobs, limits),
        solve=bounds.solve(checks, request.solver, solve, limits),
        budget=bounds.budget(checks, request.budget),
        priority=bounds.priority(checks, request.priority),
    )
    checks.done()
    return fields


def check_create(
    request: session_pb2.CreateSessionRequest, *, limits: RequestLimits, solve: Solve
) -> tuple[float, Solve]:
    """Time to live and solver options of a new session."""
    checks = Checks()
    ttl_s = bounds.given(request, "ttl_s", limits.default_ttl_s)
    bounds.ttl(checks, ttl_s, limits)
    bounds.idempotency_key(checks, request.idempotency_key)
    options = bounds.solve(checks, request.solver, solve, limits)
    checks.done()
    return ttl_s, options


def check_fork(
    request: session_pb2.ForkSessionRequest | session_pb2.ImportSessionRequest,
    *,
    limits: RequestLimits,
) -> float | None:
    """Time to live of the copy; None for that of the source."""
    checks = Checks()
    bounds.idempotency_key(checks, request.idempotency_key)
    ttl_s: float | None = bounds.given(request, "ttl_s", None)
    if ttl_s is not None:
        bounds.ttl(checks, ttl_s, limits)
    checks.done()
    return ttl_s


def check_session_id(session_id: str) -> str:
    """An id that is there."""
    checks = Checks()
    checks.require(session_id != "", "session_id", "an id that the server made", "''")
    checks.done()
    return session_id


def check_page_size(page_size: int) -> int:
    """Sessions on a page."""
    checks = Checks()
    checks.require(page_size <= MAX_PAGE_SIZE, "page_size", f"at most {MAX_PAGE_SIZE}", page_size)
    checks.done()
    return page_size or DEFAULT_PAGE_SIZE


def check_text(request: tokenizer_pb2.TokenizeRequest, *, limits: RequestLimits) -> str:
    """Text to encode; empty is allowed."""
    checks = Checks()
    bounds.text_length(checks, request.text, "text", limits)
    checks.done()
    return request.text


def check_ids(
    request: tokenizer_pb2.DetokenizeRequest, *, limits: RequestLimits, n_token: int
) -> tuple[int, ...]:
    """Ids to decode; none is allowed."""
    checks = Checks()
    ids = request.token_ids.ids
    bounds.token_ids(checks, ids, "token_ids.ids", limits=limits, n_token=n_token)
    checks.done()
    return tuple(ids)


def check_token_count(field: str, count: int, limits: RequestLimits) -> None:
    """Tokens of a whole call, once text is encoded."""
    checks = Checks()
    bound = f"at most {limits.max_score_tokens} tokens"
    checks.require(count <= limits.max_score_tokens, field, bound, count)
    checks.done()
