"""Sessions as bytes, as they come from a store or a caller."""

import json
from collections.abc import Callable
from typing import Any

from server.engine.results import Totals
from server.engine.snapshots import Answer, Snapshot, States
from server.engine.solve import Solve, Solved
from server.store.blob import (
    MAGIC,
    BlobError,
    _digest,
    _seal,
    read_blob,
    read_head,
    write_blob,
    write_head,
)
from tests.fuzz.target import Target

KEY = b"k" * 32
STATES = States(
    format="bfloat16",
    rows=3,
    d_model=4,
    data=bytes(range(24)),
    solved=Solved(nfe=5, residual=1e-4, status="converged"),
)
SNAPSHOT = Snapshot(
    session_id="ab" * 16,
    model="m",
    fingerprint="0123456789abcdef",
    owner="ann",
    ttl_s=60.0,
    solve=Solve(),
    create_time=1.0,
    last_used_time=2.0,
    revision=4,
    totals=Totals(3, -4.5),
    tokens=b"\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00",
    states=STATES,
    answers=(Answer(key="k", request=b"r" * 16, data=b"answer"),),
)
_PREFIX_BYTES = 16


def _read(**options: Any) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        opened = read_blob(data, **options)
        snapshot = opened.snapshot
        assert len(snapshot.tokens) == 4 * opened.position
        assert snapshot.states is None or snapshot.states.is_whole
        again = write_blob(snapshot, key=options.get("key"))
        assert read_blob(again, **options).snapshot == snapshot, "it does not come back as it was"

    return read


def _sealed(data: bytes) -> None:
    """The bytes are a header and what follows it; sealed so that the seal stops nothing."""
    text, _, body = data.partition(b"\n")
    begin = MAGIC + b"\x01\x00\x00\x00" + len(text).to_bytes(4, "little") + text
    _read()(begin + body + _seal(begin, None))


def _digested(data: bytes) -> None:
    """Likewise, with the digests of what the sections now hold."""
    text, _, body = data.partition(b"\n")
    try:
        header, at = json.loads(text), 0
        for section in header["sections"]:
            section[2] = _digest(body[at : at + section[1]])
            at += section[1]
        text = json.dumps(header).encode("utf-8")
    except Exception:
        pass  # then it goes as it is
    _sealed(text + b"\n" + body)


def _unsealed_seeds() -> list[bytes]:
    blob = write_blob(SNAPSHOT)
    end = _PREFIX_BYTES + int.from_bytes(blob[12:16], "little")
    return [blob[_PREFIX_BYTES:end] + b"\n" + blob[end:-32]]


def _blob_seeds() -> list[bytes]:
    return [write_blob(SNAPSHOT)]


REFUSALS = (BlobError,)

TARGETS = (
    Target("session blob", _blob_seeds, _read(), REFUSALS),
    Target(
        "session blob, signed", lambda: [write_blob(SNAPSHOT, key=KEY)], _read(key=KEY), REFUSALS
    ),
    Target("session blob, sealed anew", _unsealed_seeds, _sealed, REFUSALS, 20),
    Target("session blob, digests anew", _unsealed_seeds, _digested, REFUSALS, 20),
    Target("session head", lambda: [write_head(SNAPSHOT)], read_head, REFUSALS),
)
