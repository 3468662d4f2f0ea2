"""Sessions in Redis: how long they last is up to its own configuration."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from server.store.base import Entry, Head, StoreError, StoreOpenError

# An @ must not come later than where it ends a password: a library that finds a / before it takes
# what precedes that for a host and a port, and repeats it.
URL: Final = re.compile(
    r"rediss?://([^/?#]*@)?(\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\s]*)(:\d{1,5})?(/\d*)?(\?[^#@]*)?"
)
"""What a URL of Redis looks like."""
URL_FORM: Final = (
    "redis://[USER:PASSWORD@]HOST:PORT/DB, with / # ? @ of a password as %2F %23 %3F %40"
)

_CHUNK = 500
"""Heads that are read at once."""


class RedisStore:
    """A hash ``deqlm:session:ID`` for each session, and the set ``deqlm:sessions`` of all ids."""

    outlives = True

    def __init__(self, url: str, *, timeout_s: float = 2.0, prefix: str = "deqlm:") -> None:
        """Connects.

        Raises:
            StoreOpenError: the URL is none, or nobody answers there.
        """
        try:
            import redis  # takes a while, and most servers do without
        except ImportError:
            raise StoreOpenError(
                "sessions in Redis need its client, which is an extra: pip install 'deqlm[redis]'"
            ) from None

        self._error = redis.RedisError
        self._prefix = prefix
        try:
            if URL.fullmatch(url):
                # A call waits this long in all: nothing is tried again behind its back.
                self._redis: Any = redis.Redis.from_url(
                    url,
                    socket_timeout=timeout_s,
                    socket_connect_timeout=timeout_s,
                    retry=None,
                )
                self.label = _label(self._redis.connection_pool.connection_kwargs)
                self._redis.ping()
                return
        except redis.RedisError as error:
            raise StoreOpenError(f"cannot open {self.label}: {error}") from error
        except (ValueError, TypeError):
            pass  # its words may have a part of a password, also as the cause of what is raised
        raise StoreOpenError(
            f"cannot open redis: its URL must be {URL_FORM}, and options behind a ? must be "
            "redis-py's"
        )

    def write(self, entries: Sequence[Entry], deleted: Sequence[str]) -> None:
        """Keeps and drops entries in one transaction."""
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                for entry in entries:
                    mapping = {"head": entry.head, "body": entry.body}
                    pipe.hset(self._key(entry.session_id), mapping=mapping)
                    pipe.sadd(self._index, entry.session_id)
                for session_id in deleted:
                    pipe.delete(self._key(session_id))
                    pipe.srem(self._index, session_id)
                pipe.execute()
        except self._error as error:
            raise StoreError(f"{self.label}: {error}") from error

    def read(self, session_id: str) -> bytes | None:
        """The body of an entry."""
        try:
            body: bytes | None = self._redis.hget(self._key(session_id), "body")
        except self._error as error:
            raise StoreError(f"{self.label}: {error}") from error
        return body

    def heads(self) -> Iterator[Head]:
        """All entries."""
        try:
            ids = sorted(raw.decode("utf-8") for raw in self._redis.smembers(self._index))
            for begin in range(0, len(ids), _CHUNK):
                yield from self._some_heads(ids[begin : begin + _CHUNK])
        except self._error as error:
            raise StoreError(f"{self.label}: {error}") from error

    def _some_heads(self, ids: Sequence[str]) -> Iterator[Head]:
        with self._redis.pipeline(transaction=False) as pipe:
            for session_id in ids:
                pipe.hget(self._key(session_id), "head")
                pipe.hstrlen(self._key(session_id), "body")
            found = pipe.execute()
        for session_id, head, size in zip(ids, found[::2], found[1::2], strict=True):
            if head is not None:
                yield Head(session_id, head, size)

    def close(self) -> None:
        """Closes the connection."""
        self._redis.close()

    @property
    def _index(self) -> str:
        return f"{self._prefix}sessions"

    def _key(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"


def _label(options: dict[str, Any]) -> str:
    return f"redis {options.get('host', '?')}:{options.get('port', '')}/{options.get('db', 0)}"
