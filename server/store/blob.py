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
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from server.engine.snapshots import Answer, Snapshot, States
from server.store.header import (
    BlobError,
    Opened,
    answers_of,
    fields,
    get,
    is_count,
    opened_of,
    parsed,
    states_fields,
    states_of,
)

__all__ = ["BlobError", "Opened", "read_blob", "read_head", "write_blob", "write_head"]

MAGIC: Final = b"\x89DEQS\r\n\x1a"
VERSION: Final = 1
_SIGNED: Final = 1
_PREFIX: Final = struct.Struct("<8sHHI")
_SEAL_BYTES: Final = 32
_MAX_HEADER: Final = 1 << 20

Section = tuple[str, bytes, bool]
"""Name and content, and whether it has the digest that it should have."""


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
    header = fields(snapshot) | {
        "states": None if states is None else states_fields(states),
        "answers": [[a.key, a.request.hex(), a.data is not None] for a in kept],
        "sections": [[name, len(data), _digest(data)] for name, data in sections],
    }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    flags = 0 if key is None else _SIGNED
    begin = _PREFIX.pack(MAGIC, VERSION, flags, len(text)) + text
    return b"".join([begin, *(data for _, data in sections), _seal(begin, key)])


def write_head(snapshot: Snapshot) -> bytes:
    """What is known of a session before it is used."""
    return json.dumps(fields(snapshot), separators=(",", ":")).encode("utf-8")


def read_head(data: bytes) -> Opened:
    """What ``write_head`` wrote; the snapshot has no tokens. Raises BlobError."""
    return opened_of(parsed(data), b"", None, ())


def read_blob(data: bytes, *, key: bytes | None = None, strict: bool = False) -> Opened:
    """What ``write_blob`` wrote.

    Args:
        data: the bytes.
        key: with which it must be signed; None for one that is not signed.
        strict: whether states or answers that are damaged, or told in a way that this version does
            not know, are errors; they are left out otherwise: the token ids are the session.

    Raises:
        BlobError: it is none, of another version, damaged, or not signed with the key.
    """
    header, body = _unsealed(data, key)
    sections = _sections(get(header, "sections", list), body)
    names = [name for name, _, _ in sections]
    if names[:1] != ["tokens"]:
        raise BlobError(f"sections must begin with tokens, got {names}")
    _, tokens, is_whole = sections[0]
    if not is_whole:
        raise BlobError("the token ids do not have the digest that the header tells")
    damage = _Damage(strict)
    with damage.noted():
        if not set(names[1:]) <= {"states", "answer"}:
            raise BlobError(f"sections must be tokens, states and answers, got {names}")
    states, answers = _states(header, sections[1:], damage), _answers(header, sections[1:], damage)
    opened = opened_of(header, tokens, states, answers)
    if len(tokens) != 4 * opened.position:
        raise BlobError(f"position must be {len(tokens) // 4}, got {opened.position}")
    return replace(opened, damage="; ".join(damage.found) or None)


class _Damage:
    """What is wrong with parts that a session can do without.

    Attributes:
        found: what, in words.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Goes on behind what was found, unless that is to be an error."""
        try:
            yield
        except BlobError as error:
            if self._strict:
                raise
            self.found.append(str(error))


def _states(header: dict[str, Any], sections: Sequence[Section], damage: _Damage) -> States | None:
    """The states; None where there are none, or none that this version can read."""
    for name, content, is_whole in sections:
        if name == "states":
            with damage.noted():
                if not is_whole:
                    raise BlobError("the states do not have the digest that the header tells")
                return states_of(header.get("states"), content)
    return None


def _answers(header: dict[str, Any], sections: Sequence[Section], damage: _Damage) -> list[Answer]:
    """The answers; one whose content is damaged is known to have been given, and no more."""
    kept = [
        content if is_whole else None for name, content, is_whole in sections if name == "answer"
    ]
    with damage.noted():
        if None in kept:
            raise BlobError("the answers do not have the digests that the header tells")
    with damage.noted():
        return answers_of(get(header, "answers", list), kept)
    return []


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
    return parsed(bytes(view[_PREFIX.size : end])), view[end:-_SEAL_BYTES]


def _sections(listed: list[Any], body: memoryview) -> list[Section]:
    """All sections that are listed. Raises BlobError."""
    found, begin = [], 0
    for item in listed:
        if not (isinstance(item, list) and len(item) == 3):
            raise BlobError("a section must be told by name, length and digest")
        name, size, digest = item
        if not (isinstance(name, str) and is_count(size) and isinstance(digest, str)):
            raise BlobError("a section must be told by name, length and digest")
        content = bytes(body[begin : begin + size])
        found.append((name, content, len(content) == size and _digest(content) == digest))
        begin += size
    if begin != len(body):
        raise BlobError(f"sections must be {begin} bytes long, got {len(body)}")
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _seal(data: bytes, key: bytes | None) -> bytes:
    if key is None:
        return hashlib.blake2b(data, digest_size=_SEAL_BYTES).digest()
    return hmac.digest(key, data, "sha256")
