"""How all figures look: colours, fonts, lines. Colours are safe for colour-blind readers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from training.plots.errors import PlotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Stroke = Literal["solid", "dashed", "dotted"]

# Every colour is told from the others by its hex digits: a page's theme replaces them
# (``training.plots.output.inline_svg``), so that each must occur in one role only.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c2609a", "#b07c00", "#4a6fe3")
SHADES = ("#a9cbe8", "#7fb0dc", "#4f93cc", "#2274b0", "#084a85")
INK = "#24292f"
MUTED = "#6a737d"
GRID = "#dfe3e8"
MARK = "#c4314b"
SURFACE = "#fdfdfe"

_RC: dict[str, Any] = {
    "font.family": ["sans-serif"],
    # One that is always there; a page puts its own in its place.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": SURFACE,
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
    "svg.hashsalt": "deqlm",
    "path.simplify": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """Our settings in place of matplotlib's, and of the user's own, for as long as it is open.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError(
            "figures need the package matplotlib, which is not installed; "
            "the extra train has it: pip install 'deqlm[train]'"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _RC.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]  # its stubs list the names
        yield


def series_colour(number: int) -> str:
    """Colour of the ``number``-th series, from 0; they repeat after six."""
    return SERIES[number % len(SERIES)]


def shade(number: int, count: int) -> str:
    """Colour of the ``number``-th of ``count`` moments of one series, from pale to strong."""
    if count <= 1:
        return SHADES[-1]
    return SHADES[round(number * (len(SHADES) - 1) / (count - 1))]


def tidy_log_axis(axes: "Axes", which: Literal["x", "y"]) -> None:
    """A logarithmic axis with labels like 0.05, 20 and 1e-6, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scale = axes.set_xscale if which == "x" else axes.set_yscale
    scale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=_subs(high / low if low > 0 else 1.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    axis.set_minor_formatter(NullFormatter())


def _subs(span: float) -> tuple[float, ...]:
    """Multiples of the powers of ten that have labels, for an axis over so many times its least."""
    if span < 3:
        return (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    if span < 10:
        return (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    return (1.0, 2.0, 5.0) if span < 200 else (1.0,)


def number_text(value: float) -> str:
    """A number of an axis: plain from 0.0001 to 99,999, else as a power of ten."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        return f"{value:g}" if abs(value) < 1e4 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
