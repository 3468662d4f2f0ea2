"""Which deqlm this is: version, revision of its source, and what it computes with."""

import functools
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROGRAM = "deqlm"
UNKNOWN = "unknown"

_FOLDER = Path(__file__).resolve().parent
_GIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What runs.

    Attributes:
        version: of the package, ``0`` where it was never installed.
        revision: of git, with ``-dirty`` behind it where files were changed since; ``unknown``
            where nothing tells.
        torch: its version, with what it was built for; ``unknown`` where it is not installed.
        python: its version.
    """

    version: str
    revision: str
    torch: str
    python: str

    def __str__(self) -> str:
        return f"{self.version} ({self.revision})"


@functools.cache
def this_build() -> Build:
    """That of the code which runs; imports no torch."""
    return Build(
        version=_version_of(PROGRAM, "0"),
        revision=revision_of(_FOLDER),
        torch=_version_of("torch", UNKNOWN),
        python=platform.python_version(),
    )


def revision_of(folder: Path) -> str:
    """What the build has put beside the package ``cli``, else what git says of its source.

    Args:
        folder: that of the package.
    """
    try:
        baked = (folder / "revision.txt").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        baked = ""
    return baked or _from_git(folder.parent)


def _from_git(root: Path) -> str:
    if not (root / ".git").exists():  # another project's repository may be further up
        return UNKNOWN
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=_GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no commit, somebody else's files
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN


def _version_of(package: str, otherwise: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return otherwise
