"""Which build it is: what was put beside the package, else git."""

import subprocess
from pathlib import Path

import pytest

from cli.build import UNKNOWN, revision_of, this_build


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a package in a source tree without git."""
    folder = tmp_path / "source" / "cli"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text("a = 1\n")
    return folder


def test_what_was_baked_in_counts(package: Path) -> None:
    (package / "revision.txt").write_text("abc123\n")
    git(package.parent, "init", "-q")
    assert revision_of(package) == "abc123"


def test_git_tells_the_commit_and_whether_files_changed(package: Path) -> None:
    git(package.parent, "init", "-q")
    assert revision_of(package) == UNKNOWN  # there is no commit yet
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    git(package.parent, "tag", "-a", "v9", "-m", "a tag does not count")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert revision_of(package) == commit[:12]
    (package / "code.py").write_text("a = 2\n")
    assert revision_of(package) == commit[:12] + "-dirty"


def test_the_repository_around_an_installed_package_is_not_asked(package: Path) -> None:
    outer = package.parent.parent
    git(outer, "init", "-q")
    git(outer, "add", ".")
    git(outer, "commit", "-q", "-m", "another project")
    assert revision_of(package) == UNKNOWN


def test_this_build_has_both() -> None:
    build = this_build()
    assert str(build) == f"{build.version} ({build.revision})"
    assert build.version == "0.1.0"
