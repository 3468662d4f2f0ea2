#!/usr/bin/env python3
"""Look up the locked packages among known vulnerabilities; fail on those that have a fix.

The advisories are on the network. Where they cannot be had, or not in time, that is said and the
exit code is 0. What was looked at and may stay is in requirements/audit-ignore.txt.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".audit-tools"
IGNORED = ROOT / "requirements" / "audit-ignore.txt"
LONGEST_S = 12.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said, and whether to fail.

    Attributes:
        lines: of the report.
        failed: whether a vulnerability has a fix and is not ignored.
    """

    lines: tuple[str, ...]
    failed: bool = False


def main(argv: Sequence[str]) -> int:
    """Audit; arguments go to pip-audit as they are."""
    report, problem = _audited(argv)
    found = Verdict((f"SKIPPED: {problem}",)) if report is None else verdict(report, ignored())
    for line in found.lines:
        print(f"audit: {line}")
    return int(found.failed)


def ignored(path: Path = IGNORED) -> dict[str, str]:
    """Reasons by vulnerability.

    Raises:
        ValueError: a line gives no reason.
    """
    reasons: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise ValueError(f"{path.name}: {name} must be followed by a reason")
            reasons[name] = reason.strip()
    return reasons


def verdict(report: Mapping[str, Any], reasons: Mapping[str, str]) -> Verdict:
    """What pip-audit's report means."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return Verdict((f"SKIPPED: the advisories of none of {len(packages)} packages were found",))
    lines, failed, used = [], False, set()
    for package in packages:
        for one in package.get("vulns", ()):
            names = {one["id"], *one.get("aliases", ())}
            fixes = ", ".join(one["fix_versions"])
            what = f"{package['name']} {package['version']}: {one['id']}"
            if known := names & set(reasons):
                used |= known
                lines.append(f"{what} is ignored: {reasons[min(known)]}")
            elif fixes:
                failed = True
                lines.append(f"{what} is fixed in {fixes}; move the lock, or say why not")
            else:
                lines.append(f"{what} has no fix yet")
    lines += [f"{name} is ignored and was not found: take it out" for name in set(reasons) - used]
    if skipped:
        lines.append(f"not audited, as nothing is known of them: {', '.join(skipped)}")
    lines.append(f"{len(packages) - len(skipped)} of {len(packages)} packages audited")
    return Verdict(tuple(lines), failed)


def pinned() -> list[str]:
    """The packages that are installed, torch among them, without the hashes that it has none of."""
    texts = [(ROOT / "requirements" / name).read_text() for name in ("lock.txt", "torch.txt")]
    lines = [line for text in texts for line in text.splitlines()]
    return [line.removesuffix("\\").strip() for line in lines if line[:1] not in ("", "#", " ")]


def _audited(argv: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report, or None and why there is none."""
    if not (TOOLS / "pip_audit").is_dir():
        return None, "pip-audit could not be installed"
    environment = os.environ | {"PYTHONPATH": str(TOOLS)}
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text("\n".join(pinned()), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--disable-pip"),
            *("--no-deps", "--format", "json", "--timeout", "5", "--progress-spinner", "off"),
            *argv,
        ]
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            return None, f"the advisories did not come within {LONGEST_S:.0f} s"
    try:
        return json.loads(ended.stdout), ""
    except ValueError:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return None, f"the advisories cannot be had: {last}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
