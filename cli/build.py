"""Which deqlm this is: its version, and the revision of the source it was made from."""

import functools
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
    """What was built.

    Attributes:
        version: of the package, ``0`` where it was never installed.
        revision: of git, with ``-dirty`` behind it where files were changed since; ``unknown``
            where nothing tells.
    """

    version: str
    revision: str

    def __str__(self) -> str:
        return f"{self.version} ({self.revision})"


@functools.cache
def this_build() -> Build:
    """That of the code which runs."""
    return Build(version=_version(), revision=revision_of(_FOLDER))


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


def _version() -> str:
    try:
        return version(PROGRAM)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
