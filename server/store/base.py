"""What a session store does, whatever it is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store did not do what it was asked; it may later."""


class StoreOpenError(Exception):
    """The store cannot be opened; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A session as a store has it.

    Attributes:
        session_id: its id.
        head: what is read of every session at the start.
        body: what is read when the session is used.
    """

    session_id: str
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Of an entry, what is read at the start; ``size`` is that of its body in bytes."""

    session_id: str
    head: bytes
    size: int


class SessionStore(Protocol):
    """Keeps entries by id. Called by one thread at a time.

    Attributes:
        outlives: whether entries are there after the end of the process.
        label: for logs, without secrets.
    """

    outlives: bool
    label: str

    def write(self, entries: Sequence[Entry], deleted: Sequence[str]) -> None:
        """Keeps entries in the place of those of their ids, and drops others: all or nothing.

        Raises:
            StoreError: nothing has changed, or nobody knows.
        """

    def read(self, session_id: str) -> bytes | None:
        """The body of an entry; None where there is none. Raises StoreError."""

    def heads(self) -> Iterator[Head]:
        """All entries. Raises StoreError."""

    def close(self) -> None:
        """Lets go of it."""
