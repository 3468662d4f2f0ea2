"""Messages as they come off the wire: what is none becomes an error like any other."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from server.errors import InvalidFields

Parse = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are no message of the kind that a method takes.

    Attributes:
        size: how many; what they are is told to nobody.
    """

    size: int

    @property
    def error(self) -> InvalidFields:
        """What the caller is told."""
        problem = f"request must be a message of the method's type, got {self.size} other bytes"
        return InvalidFields([("request", problem)])


def lenient(parse: Parse) -> Parse:
    """A parser that returns ``Malformed`` where gRPC would end the call itself, and log a trace."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Malformed(len(data))

    return read


def checked(request: Any) -> Any:
    """A message, or a stream of them, that is what it should be. Raises InvalidFields."""
    if isinstance(request, Malformed):
        raise request.error
    return _checked(request) if hasattr(request, "__aiter__") else request


async def _checked(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield checked(message)
