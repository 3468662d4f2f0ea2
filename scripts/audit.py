#!/usr/bin/env python3
"""Look up the locked packages among known vulnerabilities; fail on those that have a fix.

The advisories are on the network. Where they cannot be had, or not in time, that is said and is no
failure. What needs no network is done in any case: are the locked versions among the bad ones that
requirements/known-bad.txt lists, does every line of the lock have hashes, and is what is installed
what is locked. What was looked at and may stay is in requirements/audit-ignore.txt.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".audit-tools"
REQUIREMENTS = ROOT / "requirements"
IGNORED = REQUIREMENTS / "audit-ignore.txt"
KNOWN_BAD = REQUIREMENTS / "known-bad.txt"
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
    by_advisories = (
        Verdict((f"SKIPPED: {problem}",)) if report is None else verdict(report, ignored())
    )
    found = (by_advisories, among_known_bad(pinned(), ignored()), locked())
    for line in (line for one in found for line in one.lines):
        print(f"audit: {line}")
    return int(any(one.failed for one in found))


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


def among_known_bad(
    pins: Sequence[str], reasons: Mapping[str, str], path: Path = KNOWN_BAD
) -> Verdict:
    """Which of the pinned versions the kept list knows to be bad."""
    text = path.read_text(encoding="utf-8")
    dated = re.search(r"as of (\d{4}-\d{2}-\d{2})", text)
    if dated is None:
        raise ValueError(f"{path.name} must say as of when it is")
    bad = [line.split(maxsplit=3) for line in text.splitlines() if line[:1] not in ("", "#")]
    wanted = [Requirement(pin) for pin in pins]
    lines, checked = [], 0
    for name, versions, vulnerability, what in bad:
        for pin in (pin for pin in wanted if canonicalize_name(pin.name) == name):
            checked += 1
            version = next(iter(pin.specifier)).version
            if SpecifierSet(versions).contains(version) and vulnerability not in reasons:
                lines.append(f"{name} {version}: {vulnerability}, {what}; move the lock")
    told = f"{checked} entries of {path.name}, which is as of {dated[1]}, were looked at"
    return Verdict((*lines, told), bool(lines))


def locked(folder: Path = REQUIREMENTS) -> Verdict:
    """Whether every locked package has hashes, and is installed in its locked version."""
    text = (folder / "lock.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^(\S+==.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    lines = []
    for pin in pins:
        line = pin.splitlines()[0].removesuffix("\\").strip()
        if "--hash=sha256:" not in pin:
            lines.append(f"lock.txt must have a hash of {line}")
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            lines += _installed_otherwise(wanted)
    return Verdict(
        (*lines, f"{len(pins)} locked packages compared with the installed"), bool(lines)
    )


def _installed_otherwise(wanted: Requirement) -> list[str]:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return [f"{wanted} is locked and not installed"]
    return [] if wanted.specifier.contains(version) else [f"{wanted} is locked, not {version}"]


def pinned() -> list[str]:
    """The packages that are installed, torch among them, without the hashes that it has none of."""
    texts = [(REQUIREMENTS / name).read_text() for name in ("lock.txt", "torch.txt")]
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
