"""How a page looks, in light and in dark. The colours of the charts are properties of it."""

from training.plots.style import GRID, INK, MARK, MUTED, SERIES, SHADES, SURFACE

_LIGHT = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "mark": MARK,
    "surface": SURFACE,
    "page": "#f3f4f6",
    "border": "#d9dde2",
    "stand-out": "#fff3d6",
}
_DARK = {
    "ink": "#e3e7ec",
    "muted": "#97a1ac",
    "grid": "#343c46",
    "mark": "#ff7b8a",
    "surface": "#1c2128",
    "page": "#12161b",
    "border": "#343c46",
    "stand-out": "#3d3420",
}
# Lighter tones of the same hues, told apart by colour-blind readers as well.
_DARK_SERIES = ("#56b4e9", "#ff9248", "#2fcf9f", "#ee9fcb", "#e3b341", "#9db2ff")
_DARK_SHADES = ("#2d4a66", "#3b6a96", "#4d8cc4", "#79b4e6", "#c3e2ff")


def _properties(plain: dict[str, str], series: tuple[str, ...], shades: tuple[str, ...]) -> str:
    named = plain | {f"series-{i}": colour for i, colour in enumerate(series)}
    named |= {f"shade-{i}": colour for i, colour in enumerate(shades)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


def style_sheet() -> str:
    """The page's CSS."""
    light = _properties(_LIGHT, SERIES, SHADES)
    dark = _properties(_DARK, _DARK_SERIES, _DARK_SHADES)
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_RULES}"
    )


_RULES = """\
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 3rem; max-width: 90rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.75rem; }
h3 { font-size: 1rem; margin: 0 0 0.35rem; }
p { margin: 0 0 0.75rem; }
.lead, .note, footer { color: var(--muted); }
.note { font-size: 0.84rem; line-height: 1.4; margin: 0.5rem 0 0; }
.missing { margin-top: 1rem; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
figure, .table { margin: 0; padding: 0.9rem 1rem; background: var(--surface);
  border: 1px solid var(--border); border-radius: 0.5rem; }
figure { display: flex; flex-direction: column; }
figure > svg { display: block; width: 100%; height: auto; }
figure > svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; margin: 0 0 0.35rem; padding: 0;
  list-style: none; font-size: 0.84rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; min-width: 0;
  overflow-wrap: anywhere; }
.legend svg { flex: none; width: 26px; height: 10px; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 1.5rem 0.3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; min-width: 8.5rem; }
.pairs thead { display: none; }
.pairs, .pairs tbody { display: block; }
.pairs tbody { columns: 3 20rem; column-gap: 2.5rem; }
.pairs tr { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid;
  border-bottom: 1px solid var(--grid); }
.pairs th, .pairs td { border: 0; padding-right: 0; }
.pairs td { text-align: right; overflow-wrap: anywhere; }
.options th, .options td { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: 0.82rem; }
.stands-out > * { background: var(--stand-out); }
footer { margin-top: 2.5rem; font-size: 0.84rem; }
@media print { body { background: none; } figure, .table { break-inside: avoid; } }
"""
