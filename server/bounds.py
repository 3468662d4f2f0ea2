"""Bounds of single fields, and what their values mean.

Each function notes in the request's ``Checks`` what is out of bounds; those whose value is not
plain return what it means.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.message import Message

from deqlm.v1 import common_pb2, generation_pb2
from server.config import RequestLimits
from server.engine.solve import Policy, Solve
from server.errors import InvalidFields, Violation

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

MAX_KEY_BYTES: Final = 128
"""Of idempotency keys, UTF-8."""

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


def input_value(
    checks: Checks, value: common_pb2.Input, field: str, *, limits: RequestLimits, n_token: int
) -> InputValue:
    """Text or token ids, of which there must be some."""
    kind = value.WhichOneof("kind")
    if kind == "text":
        checks.require(value.text != "", f"{field}.text", "non-empty text", "''")
        text_length(checks, value.text, f"{field}.text", limits)
        return value.text
    if kind == "token_ids":
        ids, path = value.token_ids.ids, f"{field}.token_ids.ids"
        checks.require(len(ids) > 0, path, "at least one id", "none")
        token_ids(checks, ids, path, limits=limits, n_token=n_token)
        return tuple(ids)
    checks.add(field, "must be text or token_ids, got neither")
    return ()


def text_length(checks: Checks, text: str, field: str, limits: RequestLimits) -> None:
    """Notes text that is too long."""
    # No character takes less than one byte: most texts need no encoding to be measured.
    if len(text) * 4 <= limits.max_text_bytes:
        return
    size = len(text.encode("utf-8"))
    bound = f"at most {limits.max_text_bytes} bytes long"
    checks.require(size <= limits.max_text_bytes, field, bound, f"{size} bytes")


def token_ids(
    checks: Checks, ids: Sequence[int], field: str, *, limits: RequestLimits, n_token: int
) -> None:
    """Notes too many ids, and the first that the model does not have."""
    bound = f"at most {limits.max_score_tokens} ids"
    if not checks.require(len(ids) <= limits.max_score_tokens, field, bound, len(ids)):
        return
    for index, token_id in enumerate(ids):
        if not checks.require(
            token_id < n_token, f"{field}[{index}]", f"in [0, {n_token})", token_id
        ):
            return  # one tells enough of an input made for another model


def top_k(checks: Checks, field: str, value: int, limits: RequestLimits) -> int:
    """How many alternatives to return."""
    checks.require(value <= limits.max_top_k, field, f"in [0, {limits.max_top_k}]", value)
    return value


def sampling(checks: Checks, options: generation_pb2.SamplingOptions) -> None:
    """Notes sampling options that are out of bounds."""

    def check(name: str, bound: str, holds: Callable[[float], bool]) -> None:
        if options.HasField(name):
            value = getattr(options, name)
            checks.require(holds(value), f"sampling.{name}", bound, value)

    check("temperature", "finite and at least 0", lambda x: math.isfinite(x) and x >= 0)
    check("top_k", "at least 1", lambda x: x >= 1)
    check("top_p", "in (0, 1]", lambda x: 0 < x <= 1)
    check("min_p", "in [0, 1]", lambda x: 0 <= x <= 1)
    check("repetition_penalty", "finite and above 0", lambda x: math.isfinite(x) and x > 0)


def stop_strings(checks: Checks, strings: Sequence[str], limits: RequestLimits) -> None:
    """Notes too many stop strings, and each that is empty or too long."""
    most, longest = limits.max_stop_strings, limits.max_stop_string_bytes
    checks.require(len(strings) <= most, "stop.stop_strings", f"at most {most}", len(strings))
    for index, string in enumerate(strings[:most]):
        size = len(string.encode("utf-8"))
        bound = f"1 to {longest} bytes long"
        field = f"stop.stop_strings[{index}]"
        checks.require(1 <= size <= longest, field, bound, f"{size} bytes")


def stop_ids(checks: Checks, stop: generation_pb2.StopOptions, n_token: int) -> None:
    """Notes stop ids that the model does not have, or that leave nothing to draw."""
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


def solve(
    checks: Checks,
    options: common_pb2.SolverOptions,
    default: Solve,
    limits: RequestLimits,
    *,
    prefix: str = "solver",
) -> Solve:
    """Solver options; what is unset is as in ``default``."""
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
    return replace(solve, keep_tol=given(options, "keep_tol", solve.keep_tol))


def budget(checks: Checks, budget: common_pb2.Budget, *, prefix: str = "") -> Budget:
    """What a call may take."""
    time_s: float | None = given(budget, "max_time_s", None)
    calls: int | None = given(budget, "max_calls", None)
    if time_s is not None:
        holds = 0 < time_s < math.inf  # NaN fails
        checks.require(holds, f"{prefix}budget.max_time_s", "finite and above 0", time_s)
    if calls is not None:
        checks.require(calls >= 1, f"{prefix}budget.max_calls", "at least 1", calls)
    return Budget(max_time_s=time_s, max_calls=calls)


def priority(checks: Checks, priority: common_pb2.Priority, *, prefix: str = "") -> int:
    """0 (low) to 2 (high)."""
    checks.require(priority in PRIORITIES, f"{prefix}priority", "a Priority", priority)
    return PRIORITIES.get(priority, 1)


def idempotency_key(checks: Checks, key: str, *, may_be_set: bool = True) -> None:
    """Notes a key that is too long, or where there is nothing that could be done twice."""
    size, field = len(key.encode("utf-8")), "idempotency_key"
    checks.require(size <= MAX_KEY_BYTES, field, f"at most {MAX_KEY_BYTES} bytes long", size)
    bound = "empty for a call that changes no session"
    checks.require(may_be_set or not key, field, bound, repr(key[:MAX_KEY_BYTES]))


def ttl(checks: Checks, ttl_s: float, limits: RequestLimits) -> None:
    """Notes a time to live that is out of bounds."""
    checks.require(0 < ttl_s <= limits.max_ttl_s, "ttl_s", f"in (0, {limits.max_ttl_s:g}]", ttl_s)


def given(message: Message, name: str, default: Any) -> Any:
    """An ``optional`` field's value, or the default where it is unset."""
    return getattr(message, name) if message.HasField(name) else default
