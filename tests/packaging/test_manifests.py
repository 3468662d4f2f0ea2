"""Kubernetes manifests and the compose file: valid, closed, and in step with the server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deqlm.v1 import scoring_pb2
from server.config import ServerConfig
from tests.packaging.conftest import ROOT, TIMEOUT_S, run

TOOLS = ROOT / ".deploy-tools"
VALIDATE = TOOLS / "bin" / "kubernetes-validate"
COMPOSE_SCHEMA = TOOLS / "compose" / "config" / "compose_spec.json"
MANIFEST = ROOT / "deploy" / "kubernetes" / "deqlm.yaml"
COMPOSE = ROOT / "deploy" / "compose" / "compose.yml"
READY = scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"].full_name
LAST_WORDS_S = 3.0
OPTIONS = {f"--{name.replace('_', '-')}": name for name in ServerConfig.__dataclass_fields__}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


@pytest.fixture
def pod() -> dict[str, Any]:
    """What a pod of the server is made of."""
    (of_it,) = [one for one in documents() if one["kind"] == "StatefulSet"]
    return of_it["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The server's container."""
    (only,) = pod["containers"]
    return only


def look(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python tool for manifests, in the environment of its own."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(TOOLS)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.skipif(not VALIDATE.exists(), reason="the schemas are not there: make deploy-tools")
def test_manifests_are_what_kubernetes_describes(tmp_path: Path) -> None:
    done = look(VALIDATE, "--strict", MANIFEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("passed") == len(documents())
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFEST.read_text().replace("periodSeconds", "periodSecond"))
    assert look(VALIDATE, "--strict", wrong).returncode != 0


def test_probes_ask_for_services_there_are(container: dict[str, Any]) -> None:
    assert container["startupProbe"]["grpc"] == {"port": 50051, "service": READY}
    assert container["readinessProbe"]["grpc"]["service"] == READY
    assert container["livenessProbe"]["grpc"] == {"port": 50051}
    assert {port["containerPort"] for port in container["ports"]} == {50051, 9464}


def test_a_drain_has_the_time_it_takes(pod: dict[str, Any], container: dict[str, Any]) -> None:
    (grace_s,) = [float(one["value"]) for one in container["env"] if one["name"] == "DEQLM_GRACE_S"]
    assert ServerConfig(grace_s=grace_s).grace_s == grace_s
    before_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before_s + grace_s + LAST_WORDS_S
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > grace_s + LAST_WORDS_S


def test_nothing_is_allowed_that_is_not_needed(pod: dict[str, Any], container: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= set(container["resources"])


def served(arguments: list[str]) -> dict[str, str]:
    flags, values = arguments[::2], arguments[1::2]
    return {OPTIONS[flag]: value for flag, value in zip(flags, values, strict=True)}


def test_arguments_are_options_that_the_server_has(container: dict[str, Any]) -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["deqlm"]
    assert served(container["args"]) == served(compose["command"])
    ServerConfig(**served(container["args"]))


def test_compose_closes_what_it_runs_and_mounts_what_is_there() -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert set(compose["services"]) == {"deqlm", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), mount
            else:
                assert source in compose["volumes"], mount
    server = compose["services"]["deqlm"]
    assert server["read_only"] and server["user"] == "10001:10001"
    grace_s = ServerConfig().grace_s
    assert float(server["stop_grace_period"].removesuffix("s")) >= grace_s + LAST_WORDS_S
    assert (COMPOSE.parent / server["build"]["context"]).resolve() == ROOT


@pytest.mark.skipif(not COMPOSE_SCHEMA.exists(), reason="no schema: make deploy-tools")
def test_the_compose_file_is_what_compose_describes(tmp_path: Path) -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    # The schema at hand is of compose 1.29; the project's name in the file came with compose 2.
    assert compose.pop("name") == "deqlm"

    def valid(name: str, value: object) -> bool:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        done = look("-m", "jsonschema", "-i", path, COMPOSE_SCHEMA)
        return done.returncode == 0

    assert valid("ours", compose)
    del compose["services"]["deqlm"]["read_only"]
    assert valid("other", compose)
    compose["services"]["deqlm"]["readonly"] = True
    assert not valid("wrong", compose)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not there")
def test_composes_prometheus_has_a_valid_configuration(tmp_path: Path) -> None:
    for path in ("compose/prometheus.yml", "prometheus/alerts.yml", "prometheus/recording.yml"):
        shutil.copy(ROOT / "deploy" / path, tmp_path)
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yml")
