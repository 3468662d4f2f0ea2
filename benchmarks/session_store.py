"""What keeping sessions costs: bytes of a session, and time of a call, by store.

``python -m benchmarks.session_store FOLDER [redis://...]`` writes its files to FOLDER, which should
be on the disk that is meant.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from server.engine.results import Totals
from server.engine.snapshots import STATE_BYTES, Snapshot, StateFormat, States, pack_tokens
from server.engine.solve import Solve, Solved
from server.store.base import Entry, SessionStore
from server.store.blob import read_blob, write_blob, write_head
from server.store.memory import MemoryStore
from server.store.opening import open_store
from server.store.sqlite import SQLiteStore

SHAPES = {"shakespeare-ift": (128, 256), "published": (630, 700)}
"""Tokens of a context, and channels."""
_REPEATS = 60
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Print a table."""
    folder = Path(sys.argv[1])
    stores: dict[str, SessionStore] = {
        "memory": MemoryStore(),
        "SQLite, normal": SQLiteStore(folder / "normal.db"),
        "SQLite, full": SQLiteStore(folder / "full.db", sync="full"),
    }
    if len(sys.argv) > 2:
        stores["Redis"] = open_store(sys.argv[2], sync="normal", timeout_s=5.0)
    print(
        "shape, format: bytes | copy off the device | to bytes | from bytes | " + " | ".join(stores)
    )
    for name, (rows, d_model) in SHAPES.items():
        for form in STATE_BYTES:
            print(_line(name, form, rows, d_model, stores))


def _line(name: str, form: str, rows: int, d_model: int, stores: dict[str, SessionStore]) -> str:
    z_star = torch.randn(rows, d_model)

    def copied() -> bytes:
        kept = z_star.to(_DTYPES[form]).contiguous()
        return kept.view(torch.uint8).numpy().tobytes()

    snapshot = _snapshot(form, rows, d_model, copied())  # type: ignore[arg-type]
    blob, head = write_blob(snapshot), write_head(snapshot)
    times = [_ms(copied), _ms(lambda: write_blob(snapshot)), _ms(lambda: read_blob(blob))]
    entry = Entry("session", head, blob)
    for store in stores.values():
        times.append(_ms(lambda store=store: store.write([entry], [])))  # type: ignore[misc]
    return f"{name}, {form}: {len(blob):,} | " + " | ".join(times)


def _snapshot(form: StateFormat, rows: int, d_model: int, data: bytes) -> Snapshot:
    return Snapshot(
        session_id="session",
        model="model",
        fingerprint="0" * 64,
        owner="owner",
        ttl_s=3600.0,
        solve=Solve(),
        create_time=0.0,
        last_used_time=0.0,
        revision=1,
        totals=Totals(rows, -1.0),
        tokens=pack_tokens(list(range(rows))),
        states=States(form, rows, d_model, data, Solved(10, 1e-3, "converged")),
    )


def _ms(action: Callable[[], object]) -> str:
    """Median and 95th percentile of what an action takes."""
    taken = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - begun))
    return f"{statistics.median(taken):.2f} ({statistics.quantiles(taken, n=20)[-1]:.2f}) ms"


if __name__ == "__main__":
    main()
