"""The pages about training name every option as it is, and only flags and files that there are."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.options import Option, options_of
from cli.values import shown
from loadtest.objectives import Objectives
from loadtest.options import Load, Mix, Size
from scripts.option_tables import table, updated
from training.flags import train_command
from training.options.evaluation import EvalRun
from training.options.prepare import PrepareOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TRAINING = (DOCS / "training.md").read_text(encoding="utf-8")
COMMAND = train_command("deqlm train")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_option_classes(page: Path) -> None:
    """Run ``python -m scripts.option_tables`` after changing an option."""
    text = page.read_text(encoding="utf-8")
    assert updated(text) == text


@pytest.mark.parametrize("group", [name for name in COMMAND.groups if name != "backward"])
def test_every_option_of_a_run_is_there_with_its_default(group: str) -> None:
    for option in COMMAND.options.values():
        if option.group == group:
            (row,) = re.findall(rf"^\| `{option.flag}` \| (.*?) \| (.+) \|$", TRAINING, re.M)
            assert row[0] == (shown(option.default) if option.name != "out" else "required")


def test_the_backward_solver_has_the_options_of_the_forward_one() -> None:
    both = [
        [(o.name, o.default, o.meaning) for o in COMMAND.options.values() if o.group == group]
        for group in ("forward", "backward")
    ]
    assert both[0] == both[1]


def test_a_changed_table_is_put_right() -> None:
    old = "a\n<!-- options: train.guard -->\n| `--old` | 1 | x |\n<!-- /options -->\nb\n"
    new = updated(old)
    assert "--old" not in new
    assert table("train.guard") in new
    assert new.startswith("a\n<!-- options")
    assert new.endswith("<!-- /options -->\nb\n")
    with pytest.raises(KeyError):
        updated("<!-- options: train.nothing -->\n<!-- /options -->")


def options_of_loads() -> Iterator[Option]:
    """Those of a load test that have groups."""
    groups = {"load": Load, "mix": Mix, "size": Size, "objective": Objectives}
    for group, kind in groups.items():
        yield from options_of(group, kind)


def flags_named(text: str) -> Iterator[str]:
    """Flags with a group: whose they are is beyond doubt."""
    yield from re.findall(r"--[a-z]+\.[a-z][a-z0-9_.-]*[a-z0-9]", text)


@pytest.mark.parametrize("page", [*PAGES, DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_flags_of_a_run_that_are_named_exist(page: Path) -> None:
    known = {option.flag for option in COMMAND.options.values()}
    if page.name == "loadtest.md":
        known |= {option.flag for option in options_of_loads()}
    named = {flag.replace("_", "-") for flag in flags_named(page.read_text(encoding="utf-8"))}
    assert named <= known


@pytest.mark.parametrize("page", [*PAGES, DOCS.parent / "README.md"], ids=lambda page: page.name)
@pytest.mark.parametrize(("command", "kind"), [("eval", EvalRun), ("prepare", PrepareOptions)])
def test_flags_of_commands_that_are_named_exist(command: str, kind: type, page: Path) -> None:
    known = {option.flag for option in options_of("", kind)}
    known |= {"--help", "--config", "--print-config"}
    for line in page.read_text(encoding="utf-8").splitlines():
        for call in re.findall(rf"deqlm {command} ([^`#]*)", line):
            assert set(re.findall(r"--[a-z][a-z-]+", call)) <= known, line


def test_recipes_that_are_named_exist() -> None:
    from cli.sources import recipe_names

    assert COMMAND.recipes is not None
    known = set(recipe_names(COMMAND.recipes))
    for page in (*PAGES, DOCS.parent / "README.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"--recipe ([\w-]+)", text)) - {"NAME"} <= known, page.name
    assert known <= set(re.findall(r"`([\w-]+)`", TRAINING))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
