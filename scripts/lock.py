#!/usr/bin/env python3
"""Rewrite requirements/lock.txt from pyproject.toml: exact versions and hashes, no torch.

The lock holds what the project, its ``dev`` extra and torch itself depend on, for every platform
and Python that the project supports. It names no package index: the machine's own is used.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
HEADER = "# Made by `make lock` from pyproject.toml. Do not edit.\n"

# torch comes from requirements/torch.txt, as its wheels differ by accelerator; what it needs on
# every platform is locked here, so that installing it adds nothing unpinned on a CPU.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools>=77", "sympy>=1.13.3")


def wanted() -> list[str]:
    """Requirements of the project and its ``dev`` extra, torch replaced by what it needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [line for line in direct if not line.startswith("torch>")] + [*TORCH_NEEDS]


def lock(requirements: list[str]) -> str:
    """Resolve to exact versions with the hashes of every published file.

    Raises:
        subprocess.CalledProcessError: the resolver found no solution (it has said why).
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "requirements.in")
        source.write_text("\n".join(requirements))
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", str(source)),
            *("--universal", "--python-version", "3.11", "--generate-hashes"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--upgrade", "--quiet"),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Write the lock file."""
    LOCK.write_text(HEADER + lock(wanted()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
