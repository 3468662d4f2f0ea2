"""Sessions in the host's memory: they end with the process."""

from collections.abc import Iterator, Sequence

from server.store.base import Entry, Head


class MemoryStore:
    """A dictionary."""

    outlives = False
    label = "memory"

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def write(self, entries: Sequence[Entry], deleted: Sequence[str]) -> None:
        """Keeps and drops entries."""
        for entry in entries:
            self._entries[entry.session_id] = entry
        for session_id in deleted:
            self._entries.pop(session_id, None)

    def read(self, session_id: str) -> bytes | None:
        """The body of an entry."""
        entry = self._entries.get(session_id)
        return None if entry is None else entry.body

    def heads(self) -> Iterator[Head]:
        """All entries."""
        for entry in self._entries.values():
            yield Head(entry.session_id, entry.head, len(entry.body))

    def close(self) -> None:
        """Forgets everything."""
        self._entries.clear()
