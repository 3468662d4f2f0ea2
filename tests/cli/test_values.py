"""Texts of flags and values of YAML become values of the option's type, or are refused."""

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.values import Kind, plain, shown

Switch = Literal["auto", "on", "off"]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (bool, "Yes", True),
        (bool, "off", False),
        (int, "-3", -3),
        (float, "1e-3", 0.001),
        (float, "inf", float("inf")),
        (str, "", ""),
        (Path, "a/b", Path("a/b")),
        (Path | None, "none", None),
        (int | None, "0", 0),
        (Switch, "on", "on"),
        (tuple[int, ...], "3,6", (3, 6)),
        (tuple[int, ...], "[3, 6]", (3, 6)),
        (tuple[int, ...], "none", ()),
        (tuple[str, ...], "a=x,b=y", ("a=x", "b=y")),
    ],
)
def test_text(annotation: Any, text: str, value: object) -> None:
    got = Kind.of(annotation).from_text(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 3, 3.0),
        (float, "1e-3", 0.001),  # a text, in YAML
        (Switch, True, "on"),  # as YAML reads on
        (Path, "a", Path("a")),
        (int | None, None, None),
        (tuple[int, ...], [3, 6], (3, 6)),
        (tuple[int, ...], None, ()),
    ],
)
def test_yaml(annotation: Any, value: object, expected: object) -> None:
    got = Kind.of(annotation).from_yaml(value)
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(bool, "maybe"), (int, "3.5"), (float, "x"), (Path, ""), (Switch, "yes"), (int | None, "")],
)
def test_text_of_another_type(annotation: Any, text: str) -> None:
    with pytest.raises(ValueError):
        Kind.of(annotation).from_text(text)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (bool, 1),
        (bool, "true"),
        (int, True),
        (int, 3.0),
        (int, "3"),
        (int, None),
        (float, True),
        (float, "x"),
        (str, 3),
        (Path, 3),
        (Path, "a\0b"),
        (Path, "\ud800"),
        (Switch, 3),
        (tuple[int, ...], 3),
        (tuple[int, ...], ["3"]),
    ],
)
def test_yaml_of_another_type(annotation: Any, value: object) -> None:
    with pytest.raises(ValueError):
        Kind.of(annotation).from_yaml(value)


@pytest.mark.parametrize("annotation", [dict, int | str, tuple[int, str], Literal[1, 2]])
def test_a_type_without_flag(annotation: Any) -> None:
    with pytest.raises(TypeError, match="no flag can be made for"):
        Kind.of(annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Path | None, "a path, or none"),
        (Switch, "auto, on or off"),
        (tuple[int, ...], "whole numbers with commas between them"),
    ],
)
def test_what_is_expected(annotation: Any, words: str) -> None:
    assert Kind.of(annotation).expected == words


VALUES = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (int | None, st.none() | st.integers()),
    (Switch, st.sampled_from(["auto", "on", "off"])),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
]


@pytest.mark.parametrize(("annotation", "values"), VALUES, ids=str)
@given(data=st.data())
def test_what_is_written_as_yaml_is_read_back(annotation: Any, values: Any, data: Any) -> None:
    value = data.draw(values)
    written = yaml.safe_load(yaml.safe_dump(plain(value)))
    assert Kind.of(annotation).from_yaml(written) == value


@pytest.mark.parametrize(("annotation", "values"), VALUES, ids=str)
@given(data=st.data())
def test_what_is_shown_is_understood(annotation: Any, values: Any, data: Any) -> None:
    value = data.draw(values)
    got = Kind.of(annotation).from_text(shown(value))
    assert got == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
