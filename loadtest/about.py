"""What a run was made with and on: ``run.json``."""

import contextlib
import json
import platform
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path

from client.resources import ModelInfo
from loadtest.settings import Settings


def write_about(out: Path, settings: Settings, model: ModelInfo) -> None:
    """What a run was made with and on, for whoever reads its figures."""
    told = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.to_json(),
        "server": {
            "version": model.server_version,
            "model": model.name,
            "fingerprint": model.fingerprint,
            "n_parameters": model.n_parameters,
            "device": model.device,
            "dtype": model.dtype,
            "tol": model.default_solver.tol,
            "max_nfe": model.default_solver.max_nfe,
        },
        "client": {
            "machine": _processor(),
            "system": platform.system(),
            "cores": cpu_count(),
            "python": platform.python_version(),
        },
    }
    (out / "run.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
