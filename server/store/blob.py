"""A session as bytes: what stores keep, and what goes from one server to another.

::

    magic     8 bytes  89 44 45 51 53 0D 0A 1A
    version   u16      1
    flags     u16      1: signed
    length    u32      of the header
    header             JSON: what the session is, and name, length and digest of each section
    sections           token ids (u32 each), states, answers, one after the other
    seal      32 bytes of all up to the end of the header: BLAKE2b-256, or HMAC-SHA256 if signed

Numbers are little-endian. The seal covers the sections by their digests (BLAKE2b-128). Nothing in a
blob is ever executed or unpickled, and what it claims is checked against what it is.
"""

import hashlib
import hmac
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.engine.results import Totals
from server.engine.snapshots import STATE_BYTES, Answer, Snapshot, States
from server.engine.solve import Solve, Solved

MAGIC: Final = b"\x89DEQS\r\n\x1a"
VERSION: Final = 1
_SIGNED: Final = 1
_PREFIX: Final = struct.Struct("<8sHHI")
_SEAL_BYTES: Final = 32
_MAX_HEADER: Final = 1 << 20
_POLICIES: Final = ("best_effort", "error")
_NO_NUMBERS: Final = ("nan", "inf", "-inf")
_STATUSES: Final = ("converged", "loosened", "max_nfe", "nonfinite")


class BlobError(ValueError):
    """The bytes are no session, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a blob holds.

    Attributes:
        snapshot: the session; without its states where those are damaged.
        position: tokens held, as the header has it.
        last_token: likewise.
        damage: what was wrong with sections that can be done without; None for nothing.
    """

    snapshot: Snapshot
    position: int
    last_token: int | None
    damage: str | None = None


def write_blob(snapshot: Snapshot, *, key: bytes | None = None, answers: bool = True) -> bytes:
    """A session as bytes.

    Args:
        snapshot: of the session.
        key: to sign with; None for a checksum alone.
        answers: whether those to calls with idempotency keys go with it.
    """
    states = snapshot.states
    sections = [("tokens", snapshot.tokens)]
    sections += [] if states is None else [("states", states.data)]
    kept = snapshot.answers if answers else ()
    sections += [("answer", a.data) for a in kept if a.data is not None]
    header = _fields(snapshot) | {
        "states": None if states is None else _states_fields(states),
        "answers": [[a.key, a.request.hex(), a.data is not None] for a in kept],
        "sections": [[name, len(data), _digest(data)] for name, data in sections],
    }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    flags = 0 if key is None else _SIGNED
    begin = _PREFIX.pack(MAGIC, VERSION, flags, len(text)) + text
    return b"".join([begin, *(data for _, data in sections), _seal(begin, key)])


def write_head(snapshot: Snapshot) -> bytes:
    """What is known of a session before it is used."""
    return json.dumps(_fields(snapshot), separators=(",", ":")).encode("utf-8")


def read_head(data: bytes) -> Opened:
    """What ``write_head`` wrote; the snapshot has no tokens. Raises BlobError."""
    return _opened(_parsed(data), b"", None, ())


def read_blob(data: bytes, *, key: bytes | None = None, strict: bool = False) -> Opened:
    """What ``write_blob`` wrote.

    Args:
        data: the bytes.
        key: with which it must be signed; None for one that is not signed.
        strict: whether damaged states or answers are errors; they are left out otherwise.

    Raises:
        BlobError: it is none, of another version, damaged, or not signed with the key.
    """
    header, body = _unsealed(data, key)
    sections = _sections(_get(header, "sections", list), body)
    names = [name for name, _, _ in sections]
    if names[:1] != ["tokens"] or not set(names[1:]) <= {"states", "answer"}:
        raise BlobError(f"sections must be tokens, states and answers, got {names}")
    _, tokens, is_whole = sections[0]
    if not is_whole:
        raise BlobError("the token ids do not have the digest that the header tells")
    bad = [name for name, _, is_whole in sections if not is_whole]
    if strict and bad:
        raise BlobError(f"the {bad[0]} do not have the digest that the header tells")
    found = [content for name, content, whole in sections if name == "states" and whole]
    kept = [content if whole else None for name, content, whole in sections if name == "answer"]
    opened = _opened(
        header,
        tokens,
        _states(header.get("states"), found[0]) if found else None,
        _answers(_get(header, "answers", list), kept),
    )
    if len(tokens) != 4 * opened.position:
        raise BlobError(f"position must be {len(tokens) // 4}, got {opened.position}")
    damage = f"{', '.join(bad)} damaged" if bad else None
    return Opened(opened.snapshot, opened.position, opened.last_token, damage)


def _fields(snapshot: Snapshot) -> dict[str, Any]:
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


def _states_fields(states: States) -> dict[str, Any]:
    solved = states.solved
    # JSON has no infinity, which is the residual of a token for which f was never finite.
    residual = solved.residual if math.isfinite(solved.residual) else None
    return {
        "format": states.format,
        "rows": states.rows,
        "d_model": states.d_model,
        "solved": [solved.nfe, residual, solved.status],
    }


def _unsealed(data: bytes, key: bytes | None) -> tuple[dict[str, Any], memoryview]:
    """Header and sections of a blob whose seal is right."""
    if len(data) < _PREFIX.size + _SEAL_BYTES:
        raise BlobError(f"a session takes more than {len(data)} bytes")
    magic, version, flags, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise BlobError("the bytes are no session: they begin otherwise")
    if version != VERSION:
        raise BlobError(f"version must be {VERSION}, got {version}")
    if flags not in (0, _SIGNED):
        raise BlobError(f"flags must be 0 or {_SIGNED}, got {flags}")
    if (flags == _SIGNED) != (key is not None):
        raise BlobError(
            "it is signed, and there is no key to check that with"
            if flags
            else "it must be signed, and is not"
        )
    end = _PREFIX.size + length
    if length > _MAX_HEADER or end + _SEAL_BYTES > len(data):
        raise BlobError(f"the header cannot be {length} bytes long")
    view = memoryview(data)
    if not hmac.compare_digest(_seal(bytes(view[:end]), key), bytes(view[-_SEAL_BYTES:])):
        what = "signature" if flags else "checksum"
        raise BlobError(f"the {what} is wrong: the bytes were changed, or are not all there")
    return _parsed(bytes(view[_PREFIX.size : end])), view[end:-_SEAL_BYTES]


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BlobError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise BlobError("the header is no object")
    return header


def _sections(listed: list[Any], body: memoryview) -> list[tuple[str, bytes, bool]]:
    """Name and content of each section, and whether it has the digest that it should have."""
    found, begin = [], 0
    for item in listed:
        if not (isinstance(item, list) and len(item) == 3):
            raise BlobError("a section must be told by name, length and digest")
        name, size, digest = item
        if not (isinstance(name, str) and _is_count(size) and isinstance(digest, str)):
            raise BlobError("a section must be told by name, length and digest")
        content = bytes(body[begin : begin + size])
        found.append((name, content, len(content) == size and _digest(content) == digest))
        begin += size
    if begin != len(body):
        raise BlobError(f"sections must be {begin} bytes long, got {len(body)}")
    return found


def _opened(
    header: dict[str, Any], tokens: bytes, states: States | None, answers: Sequence[Answer]
) -> Opened:
    totals, last = _get(header, "totals", list), header.get("last_token")
    if not (len(totals) == 2 and _is_count(totals[0]) and _is_sum(totals[1])):
        raise BlobError(f"totals must be a count and a sum, got {totals}")
    if not (last is None or _is_count(last)):
        raise BlobError(f"last_token must be an id, got {last!r}")
    return Opened(
        Snapshot(
            session_id=_get(header, "session_id", str),
            model=_get(header, "model", str),
            fingerprint=_get(header, "fingerprint", str),
            owner=_get(header, "owner", str),
            ttl_s=_number(header, "ttl_s"),
            solve=_solve(_get(header, "solve", list)),
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
        holds = _is_number(tol) and 0 < tol < 1 and _is_count(max_nfe) and max_nfe >= 1
        holds = holds and policy in _POLICIES and isinstance(keep_tol, bool)
    except (ValueError, TypeError):
        holds = False
    if not holds:
        raise BlobError(f"solve must be tol, max_nfe, policy and keep_tol, got {fields}")
    return Solve(tol=float(tol), max_nfe=max_nfe, policy=policy, keep_tol=keep_tol)


def _states(fields: Any, data: bytes) -> States:
    try:
        nfe, residual, status = fields["solved"]
        residual = math.inf if residual is None else float(residual)
        solved = Solved(nfe, residual, status)
        rows, d_model, name = fields["rows"], fields["d_model"], fields["format"]
        holds = _is_count(rows) and _is_count(d_model) and _is_count(nfe) and rows * d_model > 0
        holds = holds and name in STATE_BYTES and status in _STATUSES and residual >= 0
    except (KeyError, ValueError, TypeError, OverflowError):
        holds = False
    if not holds:
        raise BlobError("states must be told by format, rows, d_model and solved")
    states = States(name, rows, d_model, data, solved)
    if not states.is_whole:
        raise BlobError(f"states of {rows} rows of {d_model} cannot be {len(data)} bytes")
    return states


def _answers(listed: list[Any], kept: list[bytes | None]) -> list[Answer]:
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


def _get(header: dict[str, Any], name: str, kind: type) -> Any:
    value = header.get(name)
    if not isinstance(value, kind):
        raise BlobError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _count(header: dict[str, Any], name: str) -> int:
    value = header.get(name)
    if not _is_count(value):
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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # NaN fails


def _is_sum(value: Any) -> bool:
    # Blobs have had these as numbers, too, which Python reads and writes in JSON.
    return value in _NO_NUMBERS or _is_number(value) or (value.__class__ is float)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _seal(data: bytes, key: bytes | None) -> bytes:
    if key is None:
        return hashlib.blake2b(data, digest_size=_SEAL_BYTES).digest()
    return hmac.digest(key, data, "sha256")
