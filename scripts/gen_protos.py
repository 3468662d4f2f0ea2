#!/usr/bin/env python3
"""Generate the stubs of proto/deqlm/v1/*.proto, with type information, next to the sources."""

import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE_ROOT = ROOT / "proto"


def generate() -> list[Path]:
    """Generate every stub whose source is newer; return the sources that were compiled.

    Raises:
        RuntimeError: the compiler refused a source (it has said why on standard error).
    """
    sources = sorted(INCLUDE_ROOT.glob("deqlm/v1/*.proto"))
    if not any(_is_stale(source) for source in sources):
        return []
    from grpc_tools import protoc  # only needed here: a build from ready stubs does without it

    well_known = files("grpc_tools") / "_proto"
    options = [f"--{kind}={INCLUDE_ROOT}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    includes = [f"-I{INCLUDE_ROOT}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, *options, *map(str, sources)]) != 0:
        raise RuntimeError(f"protoc could not compile the sources in {INCLUDE_ROOT}")
    return sources


def _is_stale(source: Path) -> bool:
    stem = source.with_suffix("")
    outputs = [Path(f"{stem}{end}") for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
    newest = source.stat().st_mtime
    return not all(output.exists() and output.stat().st_mtime >= newest for output in outputs)


def main() -> int:
    """Generate, and say what was done."""
    compiled = generate()
    print(f"compiled {len(compiled)} proto files" if compiled else "stubs are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
