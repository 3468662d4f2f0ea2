"""A real Prometheus for a test, on a port of its own."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM, TOOL = shutil.which("prometheus"), shutil.which("promtool")
WHY_NOT = "Prometheus is not installed; `scripts/prometheus` installs it on Debian, as root"
needs_prometheus = pytest.mark.skipif(PROGRAM is None or TOOL is None, reason=WHY_NOT)

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
DEADLINE_S = 60.0


class Prometheus:
    """Scrapes a target and evaluates our rules each second."""

    def __init__(self, folder: Path, scrape: dict[str, Any]) -> None:
        """Starts it; returns when it answers.

        Args:
            folder: for its configuration, data and log.
            scrape: of its configuration, the one job.
        """
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FOLDER / "recording.yml"), str(FOLDER / "alerts.yml")],
            "scrape_configs": [{"job_name": "deqlm", "scrape_timeout": "1s"} | scrape],
        }
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [
                PROGRAM,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.wait(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    def wait(self, holds: Any) -> None:
        """Until something holds that no event tells of; fails after a minute."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API has."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success"
        return told["data"]

    def values(self, expression: str) -> list[float]:
        """Those of all series of a query, now."""
        return [
            float(series["value"][1]) for series in self.ask("query", query=expression)["result"]
        ]

    def log(self) -> str:
        """What it has to say."""
        self._log.seek(0)
        return self._log.read()[-4000:]

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(timeout=60)
        self._log.close()
