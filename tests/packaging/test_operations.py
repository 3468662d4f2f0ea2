"""The operations guide: its commands do what it says, its messages are the server's."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, clean

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
MESSAGES = re.findall(r"^\| `([^`]+)`", PAGE.partition("## Troubleshooting")[2], re.MULTILINE)
ENDS = "trap 'kill -9 $server 2>/dev/null || true' EXIT\n"


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
@pytest.mark.timeout(300)
def test_its_commands_run_one_after_the_other(tmp_path: Path) -> None:
    port, metrics_port = free_ports()
    environment = clean(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        MODELS=str(ROOT / "models"),
        DEQLM_PORT=str(port),
        DEQLM_METRICS_PORT=str(metrics_port),
        DEQLM_ADDRESS=f"127.0.0.1:{port}",
    )
    shutil.copy(ROOT / "examples" / "caesar.txt", tmp_path / "text.txt")
    script = "".join(COMMANDS)
    assert "127.0.0.1:9464" in script
    script = script.replace("127.0.0.1:9464", f"127.0.0.1:{metrics_port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ENDS + script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("serving\n") == 4
    first, second = re.findall(r"^main \(default\).* ([0-9a-f]{16})$", done.stdout, re.MULTILINE)
    assert first != second
    # Solved again after the upgrade: one session, as its states are another checkpoint's.
    assert re.search(r'returns_total\{by="tokens",model="main"\} 1.0$', done.stdout, re.MULTILINE)
    perplexities = re.findall(r"perplexity +([\d.]+)", done.stdout)
    assert perplexities
    assert "nothing is wrong" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("server: stopped") == 4


def sources() -> str:
    """All strings of the programs, those that go over several lines joined."""
    paths = [
        path for name in ("server", "client", "deq_model") for path in (ROOT / name).rglob("*.py")
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_its_messages_are_told_somewhere(message: str) -> None:
    told = sources()
    for piece in message.split("…"):
        assert piece.strip(" :,") in told
    assert len(MESSAGES) > 12


def test_it_leads_to_the_pages_that_have_every_setting_metric_and_alert() -> None:
    for page in ("server.md", "monitoring.md", "faults.md", "sessions.md", "security.md"):
        assert f"]({page})" in PAGE
        assert (ROOT / "docs" / page).exists()
