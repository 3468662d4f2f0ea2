"""The table of faults names tests that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"


def test_every_row_names_tests_that_exist():
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row)
        assert named, row
        for path, name in named:
            nodes = ast.parse((ROOT / path).read_text()).body
            for part in name.split("::"):
                found = [node for node in nodes if getattr(node, "name", None) == part]
                assert found, f"{path}::{name}"
                nodes = getattr(found[0], "body", [])
