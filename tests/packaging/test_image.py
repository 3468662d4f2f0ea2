"""The image's steps, outside Docker: what they make serves as an image's container has to."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.conftest import REVISION, ROOT, TIMEOUT_S, clean, run

STEPS = ROOT / "deploy" / "docker"
UNPRIVILEGED = ROOT / "tests" / "packaging" / "unprivileged"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PORTS = ("--port", "0", "--metrics-port", "0")
HADOLINT = ROOT / ".deploy-tools" / "bin" / "hadolint"


def contained(*needed: object) -> tuple[object, ...]:
    """The command that runs others as a container would."""
    folders = (sys.base_prefix, sysconfig.get_path("purelib"), *needed)
    return ("unshare", "--mount", UNPRIVILEGED, *folders, "--")


@pytest.fixture(scope="session")
def containment() -> None:
    """Skips where this machine lets nobody make namespaces."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("unshare and setpriv are not there")
    command = [str(word) for word in (*contained(), "true")]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")


def serves(prefix: Path, serve: Callable[..., object]) -> None:
    """A server and its health check, both without rights and without a file to write to."""
    inside = contained(prefix)
    bare = {"PATH": f"{prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/dev/shm"}
    bare |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/dev/shm"}
    look = "id -u; grep ^CapEff /proc/self/status; touch /tmp/a $0/a /var/a 2>/dev/null || echo no"
    told = run(*inside, "sh", "-c", look, prefix, env=bare)
    assert re.fullmatch(r"10001\nCapEff:\t0+\nno\n", told)
    server = serve(*inside, prefix / "bin" / "deqlm", "serve", *PORTS, env=bare)
    health = run(*inside, prefix / "bin" / "deqlm", "health", "--address", server.address, env=bare)
    assert health == "serving\n"
    scored = run(prefix / "bin" / "deqlm", "score", "examples/caesar.txt", "--no-tokens",
                 "--address", server.address, cwd=ROOT)  # fmt: skip
    assert "perplexity" in scored
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_it_serves_without_rights_on_a_read_only_file_system(containment, installed, serve) -> None:
    serves(installed.parent.parent, serve)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_make_what_serves(containment, tmp_path, serve) -> None:
    """As the Dockerfile calls them, from the locked packages on."""
    prefix = tmp_path / "deqlm"
    prefix.mkdir(mode=0o755)
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "tests", "data", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    steps = tree / "deploy" / "docker"
    by = {"PYTHON": sys.executable, "DEQLM_REVISION": REVISION, "STAGE": "build"}
    for step in ("dependencies", "package"):
        subprocess.run([steps / step, prefix], check=True, env=clean(**by), timeout=800)
    verify = (steps / "verify", prefix)
    assert f"deqlm 0.1.0 ({REVISION})" in run(*verify, "cpu", env=clean(**by))
    wrong = subprocess.run([*map(str, verify), "cuda"], capture_output=True, env=clean(**by))
    assert wrong.returncode == 1
    assert b"give another TORCH_INDEX" in wrong.stderr
    assert not (prefix / "bin" / "pip").exists()
    serves(prefix, serve)


def test_verify_refuses_what_is_no_image(installed) -> None:
    prefix = installed.parent.parent
    for arguments, told in (
        ((prefix, "tpu"), "ACCELERATOR must be cpu or cuda, got tpu"),
        ((prefix,), "usage: verify PREFIX cpu|cuda"),
        ((prefix / "nowhere", "cpu"), "is not fit for cpu"),
    ):
        command = [str(word) for word in (STEPS / "verify", *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean(STAGE="build"))
        assert done.returncode == 1
        assert told in done.stderr


def test_the_dockerfile_calls_the_steps_there_are() -> None:
    called = set(re.findall(r"(?:deploy/docker|/steps)/(\w+) /opt", DOCKERFILE))
    assert called == {path.name for path in STEPS.iterdir()}
    assert all(os.access(path, os.X_OK) for path in STEPS.iterdir())


def test_the_image_runs_as_a_user_without_rights() -> None:
    last = DOCKERFILE.rpartition("COPY --from=build")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert 'CMD ["deqlm", "health"' in last
    assert "gcc" not in last


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not there: make deploy-tools")
def test_hadolint_finds_nothing() -> None:
    assert run(HADOLINT, "--failure-threshold", "style", ROOT / "Dockerfile") == ""


@pytest.mark.parametrize("step", sorted(STEPS.iterdir()), ids=lambda step: step.name)
def test_steps_are_valid_shell(step: Path) -> None:
    run("bash", "-n", step)
