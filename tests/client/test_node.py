"""A client that Node makes from proto/ at run time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "node"

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None or shutil.which("node") is None, reason="Node is not installed"
)


@pytest.fixture(scope="module")
def score_js() -> Path:
    """The example, with its packages installed."""
    lock = EXAMPLE / "package-lock.json"
    installed = EXAMPLE / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = subprocess.run(
            ["npm", "ci"], cwd=EXAMPLE, capture_output=True, text=True, timeout=110
        )
        assert done.returncode == 0, done.stderr
    return EXAMPLE / "score.js"


def _run(script: Path, address: str) -> subprocess.CompletedProcess[str]:
    # A proxy in the environment is not meant for a server on this machine.
    environment = {**os.environ, "no_proxy": "127.0.0.1,localhost"}
    return subprocess.run(
        ["node", str(script), address],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )


def test_node_speaks_the_contract(score_js, fake):
    done = _run(score_js, fake.address)
    assert done.returncode == 0, done.stderr
    assert "score: 14 tokens, perplexity 2.718" in done.stdout
    assert "one call and the stream differ by 0.0e+0" in done.stdout
    assert 'generate: "The end." (FINISH_REASON_LENGTH)' in done.stdout
    calls = ["Score", "CreateSession", "ScoreStream", "Generate", "DeleteSession"]
    assert fake.methods() == calls


def test_node_scores_streams_and_generates(score_js, live_server):
    done = _run(score_js, live_server.address)
    assert done.returncode == 0, done.stderr
    assert "score: " in done.stdout
    assert "stream: perplexity" in done.stdout
    difference = float(done.stdout.partition("one call and the stream differ by ")[2].split()[0])
    assert difference < 0.05, "a session's answer must not depend on how text was cut"
    assert "generate: " in done.stdout


def test_node_tells_what_failed(score_js):
    done = _run(score_js, "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("score.js: 14 UNAVAILABLE")
