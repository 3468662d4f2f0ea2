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
