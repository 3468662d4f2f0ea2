"""The audit of dependencies: what fails it, what does not, and that it says when it did nothing."""

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
assert spec is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def report(fixes: tuple[str, ...] = ("2.0",)) -> dict[str, Any]:
    bad = {"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": list(fixes)}
    return {
        "dependencies": [
            {"name": "numpy", "version": "1.0", "vulns": [bad]},
            {"name": "torch", "version": "1.0", "vulns": []},
            {"name": "own", "skip_reason": "not found"},
        ]
    }


def test_a_vulnerability_with_a_fix_fails() -> None:
    found = audit.verdict(report(), {})
    assert found.failed
    assert found.lines == (
        "numpy 1.0: PYSEC-1 is fixed in 2.0; move the lock, or say why not",
        "not audited, as nothing is known of them: own",
        "2 of 3 packages audited",
    )


def test_one_without_a_fix_is_told() -> None:
    found = audit.verdict(report(fixes=()), {})
    assert not found.failed
    assert found.lines[0] == "numpy 1.0: PYSEC-1 has no fix yet"


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-2"])
def test_what_was_looked_at_may_stay(name: str) -> None:
    found = audit.verdict(report(), {name: "we never load pickles", "CVE-9": "gone"})
    assert not found.failed
    assert found.lines[0] == "numpy 1.0: PYSEC-1 is ignored: we never load pickles"
    assert found.lines[1] == "CVE-9 is ignored and was not found: take it out"


def test_nothing_known_of_any_package_is_no_audit() -> None:
    unknown = {"dependencies": [{"name": "own", "skip_reason": "not found"}]}
    assert audit.verdict(unknown, {}).lines[0].startswith("SKIPPED")


def test_torch_is_looked_up_as_well() -> None:
    assert {"torch", "numpy"} <= {line.partition("==")[0] for line in audit.pinned()}


def test_reasons_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "audit-ignore.txt"
    path.write_text("# a comment\n\nCVE-1 for now\n")
    assert audit.ignored(path) == {"CVE-1": "for now"}
    path.write_text("CVE-1\n")
    with pytest.raises(ValueError, match="CVE-1 must be followed by a reason"):
        audit.ignored(path)
    assert audit.ignored() is not None


def test_the_locked_versions_are_not_known_to_be_bad() -> None:
    found = audit.among_known_bad(audit.pinned(), {})
    assert not found.failed, found.lines
    (told,) = found.lines
    assert told.endswith("were looked at")
    entries = [line for line in audit.KNOWN_BAD.read_text().splitlines() if line[:1] != "#"]
    # An entry of a package that nothing needs any more can go.
    assert int(told.split()[0]) >= len(entries)


@pytest.mark.parametrize(
    ("pin", "is_bad"),
    [
        ("PyYAML==5.3.1", True),
        ("pyyaml==5.4", False),
        ("protobuf==6.31.0 ; python_version > '3'", True),
        ("protobuf==6.33.5", False),
        ("other==1", False),
    ],
)
def test_the_kept_list(pin: str, is_bad: bool, tmp_path: Path) -> None:
    path = tmp_path / "known-bad.txt"
    path.write_text(
        "# as of 2026-01-02\npyyaml <5.4 CVE-1 it runs code\nprotobuf >=6,<6.33.5 CVE-2 it nests\n"
    )
    found = audit.among_known_bad([pin], {}, path)
    assert found.failed == is_bad
    assert "2026-01-02" in found.lines[-1]
    assert not audit.among_known_bad([pin], {"CVE-1": "why", "CVE-2": "why"}, path).failed


def test_the_lock_is_what_is_installed(tmp_path: Path) -> None:
    assert not audit.locked().failed, audit.locked().lines
    (tmp_path / "lock.txt").write_text(
        "# a comment\nnumpy==1.0 \\\n    --hash=sha256:00\n    # via\nno-such==1\n"
        "other==2 ; python_version < '3' \\\n    --hash=sha256:00\n"
    )
    assert audit.locked(tmp_path).failed
    (changed, no_hash, missing, count) = audit.locked(tmp_path).lines
    assert changed.startswith("numpy==1.0 is locked, not ")
    assert no_hash == "lock.txt must have a hash of no-such==1"
    assert missing == "no-such==1 is locked and not installed"
    assert count.startswith("3 locked packages")


class Advisories(http.server.BaseHTTPRequestHandler):
    """Answers as osv.dev does; knows of one vulnerability, of numpy."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = asked["package"]["name"]
        events = [{"introduced": "0"}, {"fixed": "999"}]
        one = {
            "id": "PYSEC-7",
            "aliases": ["CVE-7"],
            "summary": "planted",
            "published": "2026-01-01T00:00:00Z",
            "affected": [
                {
                    "package": {"name": name, "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": events}],
                }
            ],
        }
        body = json.dumps({"vulns": [one]} if name == "numpy" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def advisories() -> Iterator[str]:
    """Address of a server of advisories."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_the_tool_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "TOOLS", tmp_path)
    assert audit.main([]) == 0
    assert "SKIPPED: pip-audit could not be installed" in capsys.readouterr().out


needs_tool = pytest.mark.skipif(
    not (audit.TOOLS / "pip_audit").is_dir(), reason="`make audit` could not install pip-audit"
)


@needs_tool
def test_the_whole_of_it(advisories: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["-s", "osv", "--osv-url", advisories]) == 1
    told = capsys.readouterr().out
    assert "PYSEC-7 is fixed in 999" in told
    assert "torch" not in told
    assert "packages audited" in told


@needs_tool
def test_no_network_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    # Nobody listens at that port.
    assert audit.main(["-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]) == 0
    assert "SKIPPED: the advisories cannot be had" in capsys.readouterr().out
