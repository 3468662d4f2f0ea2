"""What the header of a session's blob says, to and from JSON: every field is checked."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.engine.results import Totals
from server.engine.snapshots import STATE_BYTES, Answer, Snapshot, States
from server.engine.solve import Solve, Solved

_POLICIES: Final = ("best_effort", "error")
_NO_NUMBERS: Final = ("nan", "inf", "-inf")
_STATUSES: Final = ("converged", "loosened", "max_nfe", "nonfinite")


class BlobError(ValueError):
    """The bytes are no session, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a blob holds.

    Attributes:
        snapshot: the session; without states or answers that are damaged or cannot be read.
        position: tokens held, as the header has it.
        last_token: likewise.
        damage: what was wrong with sections that can be done without; None for nothing.
    """

    snapshot: Snapshot
    position: int
    last_token: int | None
    damage: str | None = None


def fields(snapshot: Snapshot) -> dict[str, Any]:
    """All of a session but its content, as JSON has it."""
    solve = snapshot.solve
    return {
        "session_id": snapshot.session_id,
        "model": snapshot.model,
        "fingerprint": snapshot.fingerprint,
        "owner": snapshot.owner,
        "ttl_s": snapshot.ttl_s,
        "solve": [solve.tol, solve.max_nfe, solve.policy, solve.keep_tol],
        "create_time": snapshot.create_time,
        "last_used_time": snapshot.last_used_time,
        "revision": snapshot.revision,
        "totals": [snapshot.totals.scored_tokens, _sum_field(snapshot.totals.logprob_sum)],
        "position": snapshot.position,
        "last_token": snapshot.last_token,
        "repairs": snapshot.repairs,
    }


def _sum_field(value: float) -> float | str:
    """A sum of log-probabilities; JSON has no number for one that a broken model gives."""
    return value if math.isfinite(value) else str(value)


def states_fields(states: States) -> dict[str, Any]:
    """What is told of states."""
    solved = states.solved
    # JSON has no infinity, which is the residual of a token for which f was never finite.
    residual = solved.residual if math.isfinite(solved.residual) else None
    return {
        "format": states.format,
        "rows": states.rows,
        "d_model": states.d_model,
        "solved": [solved.nfe, residual, solved.status],
    }


def parsed(text: bytes) -> dict[str, Any]:
    """The object that a text in JSON is. Raises BlobError."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BlobError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise BlobError("the header is no object")
    return header


def opened_of(
    header: dict[str, Any], tokens: bytes, states: States | None, answers: Sequence[Answer]
) -> Opened:
    """The session of a header that was read. Raises BlobError."""
    totals, last = get(header, "totals", list), header.get("last_token")
    if not (len(totals) == 2 and is_count(totals[0]) and _is_sum(totals[1])):
        raise BlobError(f"totals must be a count and a sum, got {totals}")
    if not (last is None or is_count(last)):
        raise BlobError(f"last_token must be an id, got {last!r}")
    return Opened(
        Snapshot(
            session_id=get(header, "session_id", str),
            model=get(header, "model", str),
            fingerprint=get(header, "fingerprint", str),
            owner=get(header, "owner", str),
            ttl_s=_number(header, "ttl_s"),
            solve=_solve(get(header, "solve", list)),
            create_time=_number(header, "create_time"),
            last_used_time=_number(header, "last_used_time"),
            revision=_count(header, "revision"),
            totals=Totals(totals[0], float(totals[1])),
            tokens=tokens,
            states=states,
            answers=tuple(answers),
            repairs=_count(header, "repairs") if "repairs" in header else 0,
        ),
        _count(header, "position"),
        last,
    )


def _solve(fields: list[Any]) -> Solve:
    try:
        tol, max_nfe, policy, keep_tol = fields
        holds = _is_number(tol) and 0 < tol < 1 and is_count(max_nfe) and max_nfe >= 1
        holds = holds and policy in _POLICIES and isinstance(keep_tol, bool)
    except (ValueError, TypeError):
        holds = False
    if not holds:
        raise BlobError(f"solve must be tol, max_nfe, policy and keep_tol, got {fields}")
    return Solve(tol=float(tol), max_nfe=max_nfe, policy=policy, keep_tol=keep_tol)


def states_of(fields: Any, data: bytes) -> States:
    """States by what the header tells of them. Raises BlobError."""
    name: Any = fields.get("format") if isinstance(fields, dict) else None
    if isinstance(name, str) and name not in STATE_BYTES:
        raise BlobError(f"states must be {' or '.join(STATE_BYTES)}, got {name!r:.40}")
    try:
        nfe, residual, status = fields["solved"]
        residual = math.inf if residual is None else float(residual)
        solved = Solved(nfe, residual, status)
        rows, d_model = fields["rows"], fields["d_model"]
        holds = is_count(rows) and is_count(d_model) and is_count(nfe) and rows * d_model > 0
        holds = holds and name in STATE_BYTES and status in _STATUSES and residual >= 0
    except (KeyError, ValueError, TypeError, OverflowError):
        holds = False
    if not holds:
        raise BlobError("states must be told by format, rows, d_model and solved")
    states = States(name, rows, d_model, data, solved)
    if not states.is_whole:
        raise BlobError(f"states of {rows} rows of {d_model} cannot be {len(data)} bytes")
    return states


def answers_of(listed: list[Any], kept: list[bytes | None]) -> list[Answer]:
    """Answers by what the header tells of them; ``kept`` are the sections. Raises BlobError."""
    found, contents = [], iter(kept)
    for item in listed:
        try:
            key, request, is_there = item
            data = next(contents) if is_there else None
            found.append(Answer(_text(key), bytes.fromhex(_text(request)), data))
        except (ValueError, TypeError, StopIteration) as error:
            raise BlobError("an answer must be told by key, request and whether it is there") from (
                error
            )
    return found


def get(header: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a certain type. Raises BlobError."""
    value = header.get(name)
    if not isinstance(value, kind):
        raise BlobError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _count(header: dict[str, Any], name: str) -> int:
    value = header.get(name)
    if not is_count(value):
        raise BlobError(f"{name} must be a whole number of at least 0, got {value!r:.40}")
    return int(value)  # type: ignore[arg-type]


def _number(header: dict[str, Any], name: str) -> float:
    value = header.get(name)
    if not (_is_number(value) and float(value) >= 0):  # type: ignore[arg-type]
        raise BlobError(f"{name} must be a finite number of at least 0, got {value!r:.40}")
    return float(value)  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def is_count(value: Any) -> bool:
    """Whether it is a whole number that is not negative, of 63 bits at most."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # NaN fails


def _is_sum(value: Any) -> bool:
    # Blobs have had these as numbers, too, which Python reads and writes in JSON.
    return value in _NO_NUMBERS or _is_number(value) or (value.__class__ is float)
