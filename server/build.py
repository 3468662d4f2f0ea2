"""Which deqlm this is: version, revision of its sources, and what it computes with."""

import functools
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNKNOWN = "unknown"
REVISION_FILE = Path(__file__).with_name("REVISION")
"""Where a build notes the revision that it is of; a source tree has git instead."""

_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What runs.

    Attributes:
        version: of deqlm; 0 where it is not installed.
        revision: of its sources, as git names it; ``unknown`` where nothing tells.
        torch: its version, with what it was built for.
        python: its version.
    """

    version: str
    revision: str
    torch: str
    python: str


def this_build() -> Build:
    """The one that runs; neither imports torch nor asks it anything."""
    return Build(
        version=_version_of("deqlm", "0"),
        revision=revision(),
        torch=_version_of("torch", UNKNOWN),
        python=platform.python_version(),
    )


@functools.cache
def revision(noted: Path = REVISION_FILE) -> str:
    """The revision that the build has noted, or git's of the source tree."""
    try:
        return noted.read_text("ascii").strip() or UNKNOWN
    except (OSError, UnicodeDecodeError):
        pass
    root = noted.parent.parent
    if not (root / ".git").exists():  # another project's, further up, would tell nothing of this
        return UNKNOWN
    try:
        told = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return told.stdout.strip() or UNKNOWN


def _version_of(package: str, otherwise: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return otherwise
