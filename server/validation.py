"""The one place where the fields of a request are checked, before anything is queued.

Pure functions from a request to plain values; each raises InvalidFields with every field that is
out of bounds, by name, bound and value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.message import Message

from deqlm.v1 import (
    common_pb2,
    generation_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)
from server.config import RequestLimits
from server.engine.solve import Policy, Solve
from server.errors import InvalidFields, Violation

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000

POLICIES: Final[dict[common_pb2.BudgetPolicy, Policy]] = {
    common_pb2.BUDGET_POLICY_BEST_EFFORT: "best_effort",
    common_pb2.BUDGET_POLICY_ERROR: "error",
}

PRIORITIES: Final[dict[common_pb2.Priority, int]] = {
    common_pb2.PRIORITY_UNSPECIFIED: 1,
    common_pb2.PRIORITY_LOW: 0,
    common_pb2.PRIORITY_NORMAL: 1,
    common_pb2.PRIORITY_HIGH: 2,
}

InputValue = str | tuple[int, ...]
"""Text, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a call, or a response of a stream, may take; None for what it needs."""

    max_time_s: float | None = None
    max_calls: int | None = None

    def answer_by(self, begun: float) -> float | None:
        """The instant at which what began at ``begun`` is answered with what there is."""
        return None if self.max_time_s is None else begun + self.max_time_s


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


class Checks:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def require(self, holds: bool, field: str, bound: str, value: object) -> bool:
        """Note a violation unless it ``holds``; returns whether it does."""
        if not holds:
            self.add(field, f"must be {bound}, got {value}")
        return holds

    def add(self, field: str, problem: str) -> None:
        """Note a violation."""
        self._violations.append((field, f"{field} {problem}"))

    def done(self) -> None:
        """Raises InvalidFields if there were violations."""
        if self._violations:
            raise InvalidFields(self._violations)


def check_score(
    request: scoring_pb2.ScoreRequest, *, limits: RequestLimits, n_token: int, solve: Solve
) -> ScoreFields:
    """Fields of a Score call; ``solve`` is what unset solver options mean."""
    checks = Checks()
    count = len(request.candidates)
    checks.require(
        count <= limits.max_candidates, "candidates", f"at most {limits.max_candidates}", count
    )
    if not request.HasField("input") and not request.candidates:
        checks.add("input", "must be set when there are no candidates")
    value = None
    if request.HasField("input"):
        value = _input(checks, request.input, "input", limits=limits, n_token=n_token)
    candidates = [
        _input(checks, candidate, f"candidates[{index}]", limits=limits, n_token=n_token)
        for index, candidate in enumerate(request.candidates[: limits.max_candidates])
    ]
    fields = ScoreFields(
        input=value,
        candidates=tuple(candidates),
        top_k=_top_k(checks, "top_k", request.top_k, limits),
        solve=_solve(checks, request.solver, solve, limits),
        include_tokens=_given(request, "include_tokens", True),
        budget=_budget(checks, request.budget),
        priority=_priority(checks, request.priority),
    )
    checks.done()
    return fields


def check_stream_config(
    config: scoring_pb2.ScoreStreamConfig, *, limits: RequestLimits, solve: Solve
) -> StreamFields:
    """Fields of the first message of ScoreStream."""
    checks = Checks()
    fields = StreamFields(
        top_k=_top_k(checks, "config.top_k", config.top_k, limits),
        solve=_solve(checks, config.solver, solve, limits, prefix="config.solver"),
        include_tokens=_given(config, "include_tokens", True),
        budget=_budget(checks, config.budget, prefix="config."),
        priority=_priority(checks, config.priority, prefix="config."),
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
        _text_length(checks, message.text, "text", limits)
    elif kind == "token_ids":
        _ids(checks, message.token_ids.ids, "token_ids.ids", limits=limits, n_token=n_token)
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
        prompt = _input(checks, request.prompt, "prompt", limits=limits, n_token=n_token)
    _sampling(checks, sampling)
    _stop_strings(checks, stop.stop_strings, limits)
    _stop_ids(checks, stop, n_token)
    max_tokens = _given(stop, "max_tokens", limits.default_max_tokens)
    bound = f"in [1, {limits.max_tokens}]"
    checks.require(1 <= max_tokens <= limits.max_tokens, "stop.max_tokens", bound, max_tokens)
    bound = f"at most max_tokens = {max_tokens}"
    checks.require(stop.min_tokens <= max_tokens, "stop.min_tokens", bound, stop.min_tokens)
    fields = GenerateFields(
        prompt=prompt,
        temperature=_given(sampling, "temperature", 1.0),
        top_k=sampling.top_k,
        top_p=_given(sampling, "top_p", 1.0),
        min_p=sampling.min_p,
        repetition_penalty=_given(sampling, "repetition_penalty", 1.0),
        seed=_given(sampling, "seed", None),
        stop_strings=tuple(stop.stop_strings),
        stop_ids=frozenset(stop.stop_ids),
        max_tokens=max_tokens,
        min_tokens=stop.min_tokens,
        ignore_eos=stop.ignore_eos,
        logprobs=_top_k(checks, "logprobs", request.logprobs, limits),
        solve=_solve(checks, request.solver, solve, limits),
        budget=_budget(checks, request.budget),
        priority=_priority(checks, request.priority),
    )
    checks.done()
    return fields


def check_create(
    request: session_pb2.CreateSessionRequest, *, limits: RequestLimits, solve: Solve
) -> tuple[float, Solve]:
    """Time to live and solver options of a new session."""
    checks = Checks()
    ttl_s = _given(request, "ttl_s", limits.default_ttl_s)
    _ttl(checks, ttl_s, limits)
    options = _solve(checks, request.solver, solve, limits)
    checks.done()
    return ttl_s, options


def check_fork(request: session_pb2.ForkSessionRequest, *, limits: RequestLimits) -> float | None:
    """Time to live of the copy; None for that of the source."""
    checks = Checks()
    ttl_s: float | None = _given(request, "ttl_s", None)
    if ttl_s is not None:
        _ttl(checks, ttl_s, limits)
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
    _text_length(checks, request.text, "text", limits)
    checks.done()
    return request.text


def check_ids(
    request: tokenizer_pb2.DetokenizeRequest, *, limits: RequestLimits, n_token: int
) -> tuple[int, ...]:
    """Ids to decode; none is allowed."""
    checks = Checks()
    ids = request.token_ids.ids
    _ids(checks, ids, "token_ids.ids", limits=limits, n_token=n_token)
    checks.done()
    return tuple(ids)


def check_token_count(field: str, count: int, limits: RequestLimits) -> None:
    """Tokens of a whole call, once text is encoded."""
    checks = Checks()
    bound = f"at most {limits.max_score_tokens} tokens"
    checks.require(count <= limits.max_score_tokens, field, bound, count)
    checks.done()


def _input(
    checks: Checks, value: common_pb2.Input, field: str, *, limits: RequestLimits, n_token: int
) -> InputValue:
    kind = value.WhichOneof("kind")
    if kind == "text":
        checks.require(value.text != "", f"{field}.text", "non-empty text", "''")
        _text_length(checks, value.text, f"{field}.text", limits)
        return value.text
    if kind == "token_ids":
        ids, path = value.token_ids.ids, f"{field}.token_ids.ids"
        checks.require(len(ids) > 0, path, "at least one id", "none")
        _ids(checks, ids, path, limits=limits, n_token=n_token)
        return tuple(ids)
    checks.add(field, "must be text or token_ids, got neither")
    return ()


def _text_length(checks: Checks, text: str, field: str, limits: RequestLimits) -> None:
    # No character takes less than one byte: most texts need no encoding to be measured.
    if len(text) * 4 <= limits.max_text_bytes:
        return
    size = len(text.encode("utf-8"))
    bound = f"at most {limits.max_text_bytes} bytes long"
    checks.require(size <= limits.max_text_bytes, field, bound, f"{size} bytes")


def _ids(
    checks: Checks, ids: Sequence[int], field: str, *, limits: RequestLimits, n_token: int
) -> None:
    bound = f"at most {limits.max_score_tokens} ids"
    if not checks.require(len(ids) <= limits.max_score_tokens, field, bound, len(ids)):
        return
    for index, token_id in enumerate(ids):
        if not checks.require(
            token_id < n_token, f"{field}[{index}]", f"in [0, {n_token})", token_id
        ):
            return  # one tells enough of an input made for another model


def _top_k(checks: Checks, field: str, value: int, limits: RequestLimits) -> int:
    checks.require(value <= limits.max_top_k, field, f"in [0, {limits.max_top_k}]", value)
    return value


def _sampling(checks: Checks, options: generation_pb2.SamplingOptions) -> None:
    def check(name: str, bound: str, holds: Callable[[float], bool]) -> None:
        if options.HasField(name):
            value = getattr(options, name)
            checks.require(holds(value), f"sampling.{name}", bound, value)

    check("temperature", "finite and at least 0", lambda x: math.isfinite(x) and x >= 0)
    check("top_k", "at least 1", lambda x: x >= 1)
    check("top_p", "in (0, 1]", lambda x: 0 < x <= 1)
    check("min_p", "in [0, 1]", lambda x: 0 <= x <= 1)
    check("repetition_penalty", "finite and above 0", lambda x: math.isfinite(x) and x > 0)


def _stop_strings(checks: Checks, strings: Sequence[str], limits: RequestLimits) -> None:
    most, longest = limits.max_stop_strings, limits.max_stop_string_bytes
    checks.require(len(strings) <= most, "stop.stop_strings", f"at most {most}", len(strings))
    for index, string in enumerate(strings[:most]):
        size = len(string.encode("utf-8"))
        bound = f"1 to {longest} bytes long"
        field = f"stop.stop_strings[{index}]"
        checks.require(1 <= size <= longest, field, bound, f"{size} bytes")


def _stop_ids(checks: Checks, stop: generation_pb2.StopOptions, n_token: int) -> None:
    field, count = "stop.stop_ids", len(stop.stop_ids)
    if not checks.require(count <= n_token, field, f"at most {n_token} ids", count):
        return
    for index, token_id in enumerate(stop.stop_ids):
        if token_id >= n_token:
            checks.add(f"{field}[{index}]", f"must be in [0, {n_token}), got {token_id}")
            return  # one tells enough of ids made for another model
    ending = len(set(stop.stop_ids)) + (0 if stop.ignore_eos else 1)
    bound = "0 when every token ends the generation"
    checks.require(
        ending < n_token or not stop.min_tokens, "stop.min_tokens", bound, stop.min_tokens
    )


def _solve(
    checks: Checks,
    options: common_pb2.SolverOptions,
    default: Solve,
    limits: RequestLimits,
    *,
    prefix: str = "solver",
) -> Solve:
    solve = default
    if options.HasField("tol"):
        # NaN fails both comparisons.
        checks.require(0 < options.tol < 1, f"{prefix}.tol", "in (0, 1)", options.tol)
        solve = replace(solve, tol=options.tol)
    if options.HasField("max_nfe"):
        bound = f"in [1, {limits.max_nfe}]"
        holds = 1 <= options.max_nfe <= limits.max_nfe
        checks.require(holds, f"{prefix}.max_nfe", bound, options.max_nfe)
        solve = replace(solve, max_nfe=options.max_nfe)
    if options.policy in POLICIES:
        solve = replace(solve, policy=POLICIES[options.policy])
    elif options.policy != common_pb2.BUDGET_POLICY_UNSPECIFIED:
        checks.require(False, f"{prefix}.policy", "a BudgetPolicy", options.policy)
    return replace(solve, keep_tol=_given(options, "keep_tol", solve.keep_tol))


def _budget(checks: Checks, budget: common_pb2.Budget, *, prefix: str = "") -> Budget:
    time_s: float | None = _given(budget, "max_time_s", None)
    calls: int | None = _given(budget, "max_calls", None)
    if time_s is not None:
        holds = 0 < time_s < math.inf  # NaN fails
        checks.require(holds, f"{prefix}budget.max_time_s", "finite and above 0", time_s)
    if calls is not None:
        checks.require(calls >= 1, f"{prefix}budget.max_calls", "at least 1", calls)
    return Budget(max_time_s=time_s, max_calls=calls)


def _priority(checks: Checks, priority: common_pb2.Priority, *, prefix: str = "") -> int:
    checks.require(priority in PRIORITIES, f"{prefix}priority", "a Priority", priority)
    return PRIORITIES.get(priority, 1)


def _ttl(checks: Checks, ttl_s: float, limits: RequestLimits) -> None:
    checks.require(0 < ttl_s <= limits.max_ttl_s, "ttl_s", f"in (0, {limits.max_ttl_s:g}]", ttl_s)


def _given(message: Message, name: str, default: Any) -> Any:
    """An ``optional`` field's value, or the default where it is unset."""
    return getattr(message, name) if message.HasField(name) else default
