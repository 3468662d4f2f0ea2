"""From the name of a store to the store."""

from pathlib import Path

from server.store.base import SessionStore
from server.store.memory import MemoryStore
from server.store.redis import RedisStore
from server.store.sqlite import SQLiteStore, Sync


def open_store(name: str, *, sync: Sync, timeout_s: float) -> SessionStore:
    """The store that ``memory``, ``sqlite:PATH``, a path or ``redis://...`` names.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    kind, _, rest = name.partition(":")
    if kind == "memory":
        return MemoryStore()
    if kind == "sqlite":
        return SQLiteStore(Path(rest), sync=sync, timeout_s=timeout_s)
    if "/" in kind:  # which no other kind of store has
        return SQLiteStore(Path(name), sync=sync, timeout_s=timeout_s)
    return RedisStore(name, timeout_s=timeout_s)
