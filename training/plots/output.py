"""Figures on disk and in a page."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from training.plots.errors import PlotError
from training.plots.style import GRID, INK, MARK, MUTED, SERIES, SHADES, SURFACE, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

# The style's colours as properties of a page, which gives each a value for light and for dark.
_PROPERTIES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    MARK: "--mark",
    SURFACE: "--surface",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
    **{colour: f"--shade-{i}" for i, colour in enumerate(SHADES)},
}
_COLOUR = re.compile("|".join(_PROPERTIES))
_NAME = re.compile(r'\bid="|url\(#|href="#')
_FONT = re.compile(r"'DejaVu Sans', |'DejaVu Sans'")


def css_colour(colour: str) -> str:
    """A colour of the style as a page has it: a property where the style names one."""
    return f"var({_PROPERTIES[colour]})" if colour in _PROPERTIES else colour


def check_format(path: Path) -> None:
    """Raises PlotError unless the name ends in png, svg or pdf."""
    if path.suffix[1:].lower() not in FORMATS:
        raise PlotError(f"a figure's name must end in .png, .svg or .pdf, got {path.name}")


def save_figure(figure: "Figure", path: Path, *, dpi: int = 160) -> None:
    """Writes a figure in the format that the name's ending says: png, svg or pdf.

    Raises:
        PlotError: another ending, or the file cannot be written.
    """
    check_format(path)
    kind = path.suffix[1:].lower()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise PlotError(f"the figure cannot be written to {path}: {error.strerror}") from error


def inline_svg(figure: "Figure", *, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element of a page, its colours those of the page's theme.

    Args:
        figure: to draw.
        name: prefix of all ids in it, so that figures of a page do not share any.
        label: what it shows, for readers who do not see it; escaped already.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(label), text)
    text = _NAME.sub(lambda found: f"{found[0]}{name}-", text)
    text = _FONT.sub("", text)
    return _COLOUR.sub(lambda found: css_colour(found[0]), text).strip()


def _opening(label: str) -> str:
    safe = label.replace("\\", r"\\")
    return rf'<svg viewBox="\1" role="img" aria-label="{safe}">'
