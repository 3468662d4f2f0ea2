"""Real certificates, made when the tests run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme


@dataclass(frozen=True)
class Files:
    """A certificate, its key and its authority, as PEM files."""

    cert: Path
    key: Path
    ca: Path


def issue(folder: Path, name: str, ca: trustme.CA, *identities: str, **more: Any) -> Files:
    """A certificate of an authority; files of the same name are exchanged."""
    folder.mkdir(exist_ok=True)
    made = ca.issue_cert(*identities, **more)
    files = Files(*(folder / f"{name}.{kind}.pem" for kind in ("cert", "key", "ca")))
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    contents = ((files.key, made.private_key_pem.bytes()), (files.cert, chain))
    for path, data in (*contents, (files.ca, ca.cert_pem.bytes())):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)
    return files


def server_options(files: Files, **more: Any) -> dict[str, Any]:
    """Options of a server with a certificate."""
    return {"tls_cert": files.cert, "tls_key": files.key, **more}
