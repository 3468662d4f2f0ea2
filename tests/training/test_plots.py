"""Figures: what is drawn, that nothing warns, and that nothing global is touched."""

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from training.plots.curves import Curve, Level, Panel, curve_figure, panels_figure
from training.plots.errors import PlotError
from training.plots.output import inline_svg, save_figure
from training.plots.style import SERIES, SHADES, number_text, shade

ROOT = Path(__file__).parents[2]


def panel(**changes: object) -> Panel:
    plain: dict[str, object] = {
        "curves": [
            Curve(label="ift", x=[2, 4, 8], y=[300.0, 120.0, 80.0], y_error=[5.0, 3.0, 2.0]),
            Curve(label="ift-jr", x=[2, 4, 8], y=[200.0, 90.0, 70.0], stroke="dashed"),
        ],
        "title": "Perplexity by budget",
        "x_label": "calls of f",
        "y_label": "perplexity",
    }
    return Panel(**plain | changes)  # type: ignore[arg-type]


def test_a_panel_has_its_texts_and_curves() -> None:
    (axes,) = curve_figure(panel(levels=[Level(y=100.0, label="bound")])).axes
    assert axes.get_title(loc="left") == "Perplexity by budget"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("calls of f", "perplexity")
    curves = [line for line in axes.lines if line.get_label() in ("ift", "ift-jr")]
    assert [list(line.get_ydata()) for line in curves] == [[300, 120, 80], [200, 90, 70]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ift", "ift-jr"]
    assert "bound" in [text.get_text() for text in axes.texts]


def test_the_size_is_that_of_a_panel_in_rows_and_columns() -> None:
    figure = panels_figure([panel()] * 3, columns=2, width=4.0, height=3.0)
    assert tuple(figure.get_size_inches()) == (8.0, 6.0)
    assert len(figure.axes) == 3


def test_gaps_are_where_values_are_missing() -> None:
    curve = Curve(label="", x=[1, 2, 3, 4], y=[1.0, None, math.inf, 2.0])
    (axes,) = curve_figure(panel(curves=[curve])).axes
    assert [math.isnan(value) for value in axes.lines[0].get_ydata()] == [0, 1, 1, 0]


def test_a_logarithmic_axis_drops_what_it_cannot_show() -> None:
    curve = Curve(label="", x=[0, 1, 2], y=[1.0, 0.0, 5.0], y_error=[0.1, 0.1, math.nan])
    (axes,) = curve_figure(panel(curves=[curve], x_scale="log", y_scale="log")).axes
    x, y = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
    assert list(x) == [1, 2]
    assert [math.isnan(value) for value in y] == [True, False]


def test_a_bound_far_away_does_not_squeeze_the_curves() -> None:
    curve = Curve(label="", x=[1, 2], y=[1.0, 2.0])
    (axes,) = curve_figure(panel(curves=[curve], levels=[Level(y=1e6, label="far")])).axes
    assert list(axes.texts) == []
    assert axes.get_ylim()[1] < 10


def test_the_x_axis_is_as_wide_as_asked_for() -> None:
    curve = Curve(label="", x=[20, 200], y=[1.0, 2.0])
    (axes,) = curve_figure(panel(curves=[curve], x_range=(0.0, 260.0))).axes
    assert axes.get_xlim() == pytest.approx((-7.8, 267.8))


def test_a_single_point_is_a_dot_amid_its_axes() -> None:
    curve = Curve(label="", x=[200], y=[0.8])
    (axes,) = curve_figure(panel(curves=[curve], x_range=(0.0, 260.0))).axes
    assert axes.lines[0].get_marker() == "o"
    assert axes.get_ylim() == pytest.approx((0.4, 1.2))


VALUES = st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32) | st.just(0.0)
SCALE = st.sampled_from(["linear", "log"])


@settings(max_examples=12, deadline=None)
@given(y=st.lists(VALUES, max_size=5), x_scale=SCALE, y_scale=SCALE)
def test_any_values_can_be_drawn(y: list[float | None], x_scale: str, y_scale: str) -> None:
    curve = Curve(label="a", x=range(len(y)), y=y)
    figure = curve_figure(
        panel(curves=[curve], x_scale=x_scale, y_scale=y_scale, marks=[1.0], shaded=(0.0, 1.0))
    )
    assert inline_svg(figure, name="a", label="a").startswith("<svg")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_is_written_in_the_format_of_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / f"a.{kind}"
    save_figure(curve_figure(panel()), path)
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert path.read_bytes().startswith(begins)


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_figure(curve_figure(panel()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=r"must end in \.png, \.svg or \.pdf, got a\.bmp"):
        save_figure(Figure(), tmp_path / "a.bmp")


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlotError, match="cannot be written to"):
        save_figure(curve_figure(panel()), tmp_path / "file" / "a.png")


def test_an_inline_figure_takes_its_colours_from_the_page() -> None:
    text = inline_svg(curve_figure(panel()), name="c1", label="a &amp; b")
    assert not any(colour in text for colour in (*SERIES, *SHADES))
    assert "var(--series-0)" in text
    assert "var(--ink)" in text
    assert 'aria-label="a &amp; b"' in text
    assert "<style" not in text  # it would hold for the whole page
    spaced = '<svg xmlns:xlink="http://www.w3.org/1999/xlink"'
    root = ElementTree.fromstring(text.replace("<svg", spaced, 1))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(name is not None and name.startswith("c1-") for name in ids)
    wanted = {
        element.attrib["{http://www.w3.org/1999/xlink}href"]
        for element in root.iter()
        if "{http://www.w3.org/1999/xlink}href" in element.attrib
    }
    assert wanted <= {f"#{name}" for name in ids}


def test_settings_of_the_user_are_neither_used_nor_changed() -> None:
    with matplotlib.rc_context({"axes.labelsize": 40.0}):
        (axes,) = curve_figure(panel()).axes
        assert axes.xaxis.label.get_size() == 9.0
        assert matplotlib.rcParams["axes.labelsize"] == 40.0


def test_no_state_of_pyplot_is_made() -> None:
    code = (
        "import sys\n"
        "from training.plots.curves import Curve, Panel, curve_figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "curve_figure(Panel(curves=[Curve(label='', x=[1], y=[1])]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"pip install 'deqlm\[train\]'"):
        curve_figure(panel())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (20, "20"),
        (5e-4, "0.0005"),
        (1e-6, "1e-6"),
        (2.5e-5, "2.5e-5"),
        (25_000, "25,000"),
        (3e6, "3e6"),
        (-2.0, "-2"),
    ],
)
def test_numbers_of_an_axis_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_moments_go_from_pale_to_strong() -> None:
    assert [shade(i, 5) for i in range(5)] == list(SHADES)
    assert [shade(i, 2) for i in range(2)] == [SHADES[0], SHADES[-1]]
    assert shade(0, 1) == SHADES[-1]
