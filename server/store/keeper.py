"""Brings sessions to a store and back on a thread of its own, whatever the store is doing.

What a store has not taken yet is held here and tried again, so that a store that is down costs
durability and nothing else: sessions go on, and are told as held in memory. What is held is one
snapshot at most of each session there is, and the id of each one to be dropped that the store had,
or may have by one transaction that failed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from server.engine.snapshots import Snapshot
from server.store.base import Entry, SessionStore, StoreError
from server.store.blob import BlobError, read_blob, write_blob, write_head
from server.store.standing import Standing, StoreObserver

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MOST_ENTRIES = 64
"""Of one transaction."""


@dataclass(slots=True)
class _Write:
    """What is to be written of a session, and who waits for that.

    ``snapshot`` is None where it is to be dropped. The store ``may_have`` it once writing it was
    tried: then a drop has to be written too.
    """

    snapshot: Snapshot | None
    may_have: bool = False
    waiting: list["Future[bool]"] = field(default_factory=list)


class Keeper:
    """Writes, reads and drops sessions. Thread-safe.

    Attributes:
        on_saved: told of each snapshot that the store has; called on the keeper's thread.
        is_current: whether a snapshot's session is still there: one that was deleted since must
            not come back by what was on its way to the store. Called without the keeper's lock.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        timeout_s: float,
        observer: StoreObserver | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the thread.

        Args:
            store: the keeper's own from now on.
            timeout_s: a store that has been busy with one thing for so long counts as down.
            observer: told what the store does.
            monotonic: clock.
        """
        self._store, self._monotonic = store, monotonic
        self._standing = Standing(
            store.label, timeout_s=timeout_s, observer=observer, monotonic=monotonic
        )
        self.on_saved: Callable[[Snapshot], None] = lambda snapshot: None
        self.is_current: Callable[[Snapshot], bool] = lambda snapshot: True
        self._wake = threading.Condition()
        self._writes: dict[str, _Write] = {}
        self._reads: deque[tuple[str, Future[Snapshot | None]]] = deque()
        self._sizes: dict[str, int] = {}
        self._closing = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="session-store", daemon=True)
        self._thread.start()

    @property
    def outlives(self) -> bool:
        """Whether what is stored is there after the end of the process."""
        return self._store.outlives

    @property
    def label(self) -> str:
        """Which store it is, without secrets."""
        return self._store.label

    @property
    def is_up(self) -> bool:
        """Whether the store does what it is asked, in time, and somebody is there to ask it."""
        return self._standing.is_up and not self._is_over

    @property
    def stored(self) -> tuple[int, int]:
        """Sessions that the store has, and their bytes."""
        sizes = list(self._sizes.values())
        return len(sizes), sum(sizes)

    @property
    def waiting(self) -> int:
        """Sessions of which the store lacks the last word."""
        return len(self._writes)

    @property
    def unsaved(self) -> int:
        """Sessions among those that there still are."""
        with self._wake:
            return sum(write.snapshot is not None for write in self._writes.values())

    def held(self, session_id: str) -> int:
        """Revision of a session that waits here for a store that is down; 0 for none."""
        with self._wake:
            write = None if self.is_up else self._writes.get(session_id)
            return 0 if write is None or write.snapshot is None else write.snapshot.revision

    def note(self, session_id: str, size: int) -> None:
        """The store has had an entry of so many bytes since before the start."""
        self._sizes[session_id] = size

    def save(self, snapshot: Snapshot) -> "Future[bool]":
        """Has the store take a session, unless it has a later revision already.

        Returns:
            Whether the store has it. While the store is down that is False at once; it gets the
            session as soon as it is back all the same.
        """
        if not self.is_current(snapshot):
            gone: Future[bool] = _uncancellable()
            gone.set_result(False)
            return gone
        return self._enqueue(snapshot.session_id, snapshot)

    def drop(self, session_id: str) -> "Future[bool]":
        """Has the store forget a session; as ``save``.

        One that the store has never had is forgotten at once, whether the store is down or not.
        """
        with self._wake:
            write = self._writes.get(session_id)
            may_have = session_id in self._sizes or (write is not None and write.may_have)
            if may_have:
                return self._enqueue(session_id, None)
            told = [] if write is None else self._writes.pop(session_id).waiting
        for future in told:
            future.set_result(False)
        gone: Future[bool] = _uncancellable()
        gone.set_result(True)
        return gone

    def load(self, session_id: str) -> "Future[Snapshot | None]":
        """A session as it was saved last; None where there is none, or its bytes are damaged.

        The future raises StoreError while the store is down and has what is wanted.
        """
        future: Future[Snapshot | None] = _uncancellable()
        with self._wake:
            write = self._writes.get(session_id)
            if write is not None:
                future.set_result(write.snapshot)
            elif self._closing or self._is_over:
                future.set_exception(StoreError(f"{self.label} is closed"))
            else:
                self._reads.append((session_id, future))
                self._wake.notify()
        return future

    def close(self, *, timeout_s: float) -> bool:
        """Writes what waits, for so long at most, and closes the store; whether all is written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        with self._wake:
            return not self._writes

    def _enqueue(self, session_id: str, snapshot: Snapshot | None) -> "Future[bool]":
        future: Future[bool] = _uncancellable()
        with self._wake:
            write = self._writes.setdefault(session_id, _Write(snapshot))
            before = write.snapshot
            if snapshot is None or before is None or _age(before) <= _age(snapshot):
                write.snapshot = snapshot
            if self.is_up and not self._closing:
                write.waiting.append(future)
            else:
                future.set_result(False)
            self._wake.notify()
        return future

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # Also where the thread ends by a defect: nobody may wait for it.
            with self._wake:
                self._is_over = True
                self._answer({key: write.snapshot for key, write in self._writes.items()}, False)
            self._refuse_reads()
            self._store.close()

    def _serve(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._reads or self._writes or self._closing,
                    timeout=self._standing.patience_s,
                )
                if self._closing and not self._writes:
                    break
                if not (self._reads or self._writes):
                    self._reads.append(("", _uncancellable()))
                reads, self._reads = self._reads, deque()
                due: dict[str, Snapshot | None] = {}
                for session_id, write in islice(self._writes.items(), _MOST_ENTRIES):
                    due[session_id], write.may_have = write.snapshot, True
            for session_id, future in reads:
                self._read(session_id, future)
            if due and not self._write(due):
                if self._closing:
                    break  # whatever it was, there is no time for more
                self._rest()

    def _rest(self) -> None:
        """Waits before writing again; who wants to read meanwhile has it tried now."""
        until = self._monotonic() + self._standing.next_pause_s()
        while True:
            with self._wake:
                left = until - self._monotonic()
                if left <= 0 or self._closing:
                    return
                self._wake.wait_for(lambda: self._reads or self._closing, timeout=left)
                reads, self._reads = self._reads, deque()
            for session_id, future in reads:
                self._read(session_id, future)

    def _write(self, due: dict[str, Snapshot | None]) -> bool:
        entries, deleted, written = [], [], []
        try:
            for session_id, snapshot in due.items():
                if snapshot is None or not self.is_current(snapshot):
                    deleted.append(session_id)
                else:
                    written.append(snapshot)
                    entries.append(Entry(session_id, write_head(snapshot), write_blob(snapshot)))
            with self._standing.timed("write"):
                self._store.write(entries, deleted)
            for snapshot in written:
                self.on_saved(snapshot)
        except Exception as error:  # whatever it is, sessions must go on
            self._standing.note_failure(error)
            self._answer(due, False)
            return False
        self._standing.note_success()
        for entry in entries:
            self._sizes[entry.session_id] = len(entry.body)
        for session_id in deleted:
            self._sizes.pop(session_id, None)
        self._answer(due, True)
        return True

    def _answer(self, due: dict[str, Snapshot | None], is_stored: bool) -> None:
        """Tells those who wait; what was replaced meanwhile is written, and told, again."""
        told: list[Future[bool]] = []
        with self._wake:
            for session_id, snapshot in due.items():
                write = self._writes[session_id]
                if is_stored and write.snapshot is snapshot:
                    del self._writes[session_id]
                if not is_stored or write.snapshot is snapshot:
                    told += write.waiting
                    write.waiting = []
        for future in told:
            future.set_result(is_stored)

    def _read(self, session_id: str, future: "Future[Snapshot | None]") -> None:
        try:
            with self._standing.timed("read"):
                body = self._store.read(session_id)
        except Exception as error:
            self._standing.note_failure(error)
            future.set_exception(StoreError(f"{self.label} is not available"))
            return
        if not self._writes:  # one that reads, but does not write, is not back
            self._standing.note_success()
        try:
            future.set_result(None if body is None else self._opened(session_id, body))
        except BlobError as error:
            _log.error("session %s is damaged in %s: %s", session_id, self.label, error)
            future.set_result(None)

    def _opened(self, session_id: str, body: bytes) -> Snapshot:
        opened = read_blob(body)
        if opened.damage is not None:
            _log.warning("session %s in %s: %s", session_id, self.label, opened.damage)
        if opened.snapshot.session_id != session_id:
            raise BlobError("it is another session's")
        return opened.snapshot

    def _refuse_reads(self) -> None:
        with self._wake:
            reads, self._reads = self._reads, deque()
        for _, future in reads:
            future.set_exception(StoreError(f"{self.label} is closed"))


def _age(snapshot: Snapshot) -> tuple[float, int]:
    """What grows from one state of a session to the next, and to another one with its id."""
    return snapshot.create_time, snapshot.revision


def _uncancellable() -> "Future[T]":
    """A future that whoever waits for it cannot cancel: the work goes on without them."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    return future
