"""A wheel in an environment of its own: it serves the bundled models, and clients stay light."""

import shutil
import tarfile
import zipfile
from pathlib import Path

from tests.packaging.conftest import REVISION, ROOT, run

PORTS = ("--port", "0", "--metrics-port", "-1")


def test_the_installed_package_serves_what_is_bundled(installed, serve, tmp_path) -> None:
    server = serve(installed, "serve", *PORTS, cwd=tmp_path)
    assert f"deqlm 0.1.0 ({REVISION}), torch " in server.log
    assert "without the kernels in C" not in server.log or shutil.which("cc") is None
    at = ("--address", server.address)
    assert run(installed, "health", *at, cwd=tmp_path) == "serving\n"
    info = run(installed, "info", *at, cwd=tmp_path)
    assert "shakespeare-ift (default)" in info
    assert f"deqlm 0.1.0 ({REVISION}), torch " in info
    generated = run(installed, "generate", "But soft,", "--max-tokens", 5, *at, cwd=tmp_path)
    assert generated.strip()
    assert server.stop() == 0


def test_version_and_revision_are_those_of_the_build(installed, tmp_path) -> None:
    assert run(installed, "--version", cwd=tmp_path) == f"deqlm 0.1.0 ({REVISION})\n"


def test_what_extras_need_is_not_needed_by_all(package) -> None:
    with zipfile.ZipFile(package.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        lines = wheel.read(name).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
    of_all = {need.partition(">")[0] for need in needs if "extra ==" not in need}
    assert "grpcio" in of_all
    for other in ("redis", "matplotlib", "tensorboard", "pytest", "opentelemetry-sdk"):
        assert any(need.startswith(other) and "extra ==" in need for need in needs)
        assert other not in of_all


def test_the_wheel_holds_no_tests_and_nothing_beside_its_packages(package) -> None:
    with zipfile.ZipFile(package.wheel) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    packages = {"cli", "client", "deq_model", "deqlm", "loadtest", "server", "training"}
    assert tops - {name for name in tops if name.endswith(".dist-info")} == packages


def test_the_wheel_has_every_recipe(package) -> None:
    recipes = {path.name for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    assert {"model-ift.yaml", "model-ift-jr.yaml"} <= recipes
    with zipfile.ZipFile(package.wheel) as wheel:
        assert {f"training/recipes/{name}" for name in recipes} <= set(wheel.namelist())


def test_the_sources_hold_what_the_wheel_is_made_of(package) -> None:
    with tarfile.open(package.sdist) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"setup.py", "proto/deqlm/v1/model.proto", "cli/revision.txt"} <= names
    assert "models/shakespeare-ift/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", ".git"))]
