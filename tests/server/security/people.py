"""Principals of the tests: a file of them, and their tokens."""

import datetime
from pathlib import Path
from typing import Any

import yaml

from server.security.principals import digest_of
from tests.server.calls import Stubs

TOKENS = {name: f"deqlm_{name}-0123456789" for name in ("ann", "bob", "root", "mon", "old")}
EXPIRED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
RIGHTS = {
    "ann": ["score", "generate"],
    "bob": ["score"],
    "root": ["admin"],
    "mon": ["metrics"],
}


def entry(token: str, **more: Any) -> dict[str, Any]:
    """A token as the file has it."""
    return {"sha256": digest_of(token).hex(), **more}


def people(**changes: dict[str, Any]) -> dict[str, Any]:
    """The file's content; ``changes`` are merged into the entries of those named."""
    principals: dict[str, Any] = {
        name: {"rights": rights, "tokens": [entry(TOKENS[name])]} for name, rights in RIGHTS.items()
    }
    principals["ann"]["tokens"].append(entry(TOKENS["old"], expires=EXPIRED))
    for name, change in changes.items():
        principals.setdefault(name, {}).update(change)
    return {"principals": principals}


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write the file, whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(content))
    fresh.replace(path)
    return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),)


def stubs_of(channel: Any, name: str | None) -> Stubs:
    """Stubs with somebody's token, or with none."""
    stubs = Stubs(channel)
    stubs.metadata = () if name is None else bearer(TOKENS.get(name, name))
    return stubs
