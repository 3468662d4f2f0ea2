"""The package as others get it: sources, a wheel made of them, an environment with that alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REVISION = "feedc0de0123"
TIMEOUT_S = 100
_READY = re.compile(r"ready after .+ at (\S+), metrics")
_NOT_SOURCES = shutil.ignore_patterns(
    *(".*", "build", "dist", "runs", "tests", "benchmarks", "data"),
    *("__pycache__", "*.egg-info", "*.so"),
)


def clean(**more: str) -> dict[str, str]:
    """The environment of a process that is to find no code of the source tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEQLM_")}
    kept.pop("PYTHONPATH", None)
    return kept | more


def run(*command: object, **settings: object) -> str:
    """What a command prints; its failure is the test's, with what it said."""
    settings = {"env": clean(), **settings}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Package:
    """What was built."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Sources from a copy of the tree, and a wheel made of those sources."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "tree", ignore=_NOT_SOURCES)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('../out'))"
    run(
        *(sys.executable, "-c", build),
        cwd=folder / "tree",
        env=clean(DEQLM_REVISION=REVISION),
    )
    (sdist,) = (folder / "out").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sources", filter="data")
    (sources,) = (folder / "sources").iterdir()
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--wheel-dir", folder / "out", sources),
    )
    (wheel,) = (folder / "out").glob("*.whl")
    return Package(sdist=sdist, wheel=wheel)


@pytest.fixture(scope="session")
def installed(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment with the wheel; what it depends on is read from ours.

    Lines of a .pth file are paths, and .pth files there are not read: so our own editable
    installation is out of sight.
    """
    prefix = tmp_path_factory.mktemp("installed")
    prefix.chmod(0o755)
    venv.create(prefix, with_pip=False)
    names = {"base": str(prefix), "platbase": str(prefix)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=names))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        *(sys.executable, "-m", "pip", "--python", prefix / "bin" / "python", "install"),
        *("--no-deps", "--no-index", "--force-reinstall", package.wheel),
    )
    return prefix / "bin" / "deqlm"


class Serving:
    """A server process: its address, once it is ready, and what it logs."""

    def __init__(self, *command: object, **settings: object) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command], stderr=subprocess.PIPE, text=True, **settings
        )
        self.log = ""
        self.address = ""
        for line in self.process.stderr:
            self.log += line
            if found := _READY.search(line):
                self.address = found[1]
                return
        raise AssertionError("it ended: " + self.log)

    def stop(self) -> int:
        """End it in an orderly way, and tell its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.log += self.process.communicate(timeout=TIMEOUT_S)[1]
        return self.process.returncode


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts servers, which end with the test."""
    started: list[Serving] = []

    def start(*command: object, **settings: object) -> Serving:
        started.append(Serving(*command, **{"env": clean(), **settings}))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()
