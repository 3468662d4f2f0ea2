"""What the pages on security say is what there is."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from server.security.auth_file import read_auth_file
from server.security.options import SecurityOptions
from server.security.principals import Quotas
from server.security.rights import RIGHTS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
THREATS = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [field.name for kind in (SecurityOptions, Quotas) for field in dataclasses.fields(kind)]
)
def test_every_option_and_quota_is_there(name):
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("right", RIGHTS)
def test_every_right_is_there(right):
    assert re.search(rf"^\|.*`{right}`", PAGE, re.MULTILINE)


def test_the_file_is_one_that_the_server_reads(tmp_path):
    text = next(
        block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "#" in block
    )
    hashes = iter("abcdef")
    text = re.sub(r'"[0-9a-f]{8}…"', lambda _: '"' + next(hashes) * 64 + '"', text)
    path = tmp_path / "auth.yaml"
    path.write_text(text)
    assert read_auth_file(path).names == {"ann", "prometheus"}
    assert yaml.safe_load(text)["principals"]["ann"]["tokens"][0]["note"] == "Ann's laptop"


def test_what_shows_a_threat_met_exists():
    named = set(re.findall(r"`([\w/]+\.py|tests/[\w/]+)`", THREATS))
    assert len(named) > 10
    for name in named:
        path = ROOT / name if "/" in name else ROOT / "tests/server/security" / name
        assert path.exists(), name
