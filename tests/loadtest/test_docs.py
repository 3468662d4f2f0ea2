"""What the page on load tests says can be done."""

import re
from pathlib import Path

from cli.options import options_of
from loadtest.compare import Tolerance
from loadtest.objectives import Objectives
from loadtest.options import KINDS, Load, Mix, Run, Size
from loadtest.recorder import Recording

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loadtest.md"
GROUPS = {"load": Load, "mix": Mix, "size": Size, "objective": Objectives}


def flags():
    known = {"--config", "--print-config", "--help"}
    for kind in (Run, Recording, Tolerance):
        known |= {option.flag for option in options_of("", kind)}
    for group, kind in GROUPS.items():
        known |= {option.flag for option in options_of(group, kind)}
    return known


def test_its_flags_are_there():
    told = set(re.findall(r"--[a-z][\w.-]*\w", PAGE.read_text()))
    assert len(told) > 30
    assert told <= flags()


def test_every_objective_and_kind_is_told():
    text = PAGE.read_text()
    for option in options_of("objective", Objectives):
        assert f"`{option.flag}`" in text, option.flag
    for kind in KINDS:
        assert f"| `{kind}` |" in text


def test_every_option_has_a_meaning():
    for group, kind in ({"": Run} | GROUPS).items():
        for option in options_of(group, kind):
            assert option.meaning, option.key
    for kind in (Recording, Tolerance):
        assert all(option.meaning for option in options_of("", kind))
