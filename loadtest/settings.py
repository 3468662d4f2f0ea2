"""Everything that the command was given, as one value that goes to the sending processes."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cli.values import Kind, plain
from client._retry import RetryPolicy
from client.aio import AsyncClient
from client.commands._connection import read_token
from client.credentials import Tls
from loadtest.objectives import Objectives
from loadtest.options import Load, Mix, Run, Size
from loadtest.target import Connection, Target

ONCE = RetryPolicy(max_attempts=1)
"""A call that is repeated would count as one, and hide that the first was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a load test is run with."""

    run: Run
    """The run as a whole."""
    load: Load
    """When requests are sent."""
    mix: Mix
    """Of which kinds they are."""
    size: Size
    """How long."""
    objective: Objectives
    """What they are held to."""

    def to_json(self) -> dict[str, Any]:
        """As JSON has it; holds no token."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From what ``to_json`` gave. Raises ValueError, TypeError or KeyError."""
        return cls(
            run=_made(Run, value["run"]),
            load=_made(Load, value["load"]),
            mix=_made(Mix, value["mix"]),
            size=_made(Size, value["size"]),
            objective=_made(Objectives, value["objective"]),
        )


def _plain(options: Any) -> dict[str, Any]:
    return {f.name: plain(getattr(options, f.name)) for f in dataclasses.fields(options)}


def _made(kind: type, values: dict[str, Any]) -> Any:
    """Reads values as a YAML file's are read, so that paths are paths again."""
    types = typing.get_type_hints(kind)
    return kind(**{name: Kind.of(types[name]).from_yaml(value) for name, value in values.items()})


def owners(connection: Connection) -> tuple[str, ...]:
    """Whose the requests are."""
    if connection.owners == 1:
        return (connection.owner,)
    name = connection.owner or "loadtest"
    return tuple(f"{name}-{number}" for number in range(1, connection.owners + 1))


def tls_of(connection: Target) -> Tls | None:
    """Certificates; None for an unencrypted connection."""
    tls = Tls(ca=connection.tls_ca, cert=connection.tls_cert, key=connection.tls_key)
    return tls if connection.tls or tls != Tls() else None


def token_of(connection: Connection) -> str | None:
    """The token that shows who calls. Raises UsageError."""
    path: Path | None = connection.token_file
    return read_token(None if path is None else str(path))


def client_of(connection: Connection, *, owner: str, timeout_s: float) -> AsyncClient:
    """A client that sends every call once.

    Raises:
        UsageError: the token cannot be read.
        InvalidArgument: a certificate cannot, or the token would go unencrypted.
    """
    return AsyncClient(
        connection.address,
        timeout_s=timeout_s,
        stream_timeout_s=timeout_s,
        owner=owner,
        token=token_of(connection),
        tls=tls_of(connection),
        send_token_unencrypted=connection.send_token_unencrypted,
        retry=ONCE,
    )
