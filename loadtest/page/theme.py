"""The style of a page, for light and for dark surroundings."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #23262b; --muted: #6d747d; --rule: #dfe2e5; --raised: #f4f5f3;
  --c0: #2a66c8; --c1: #c8741a; --c2: #2c8a57; --c3: #c23b3b; --c4: #7a54b8; --c5: #5d7078;
  --shade: 42%; --good: #2c8a57; --bad: #c23b3b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --ink: #dfe3e8; --muted: #98a1ac; --rule: #31363d; --raised: #1d2025;
    --c0: #7fb0ff; --c1: #f2ab5e; --c2: #70cf9b; --c3: #ff8f8f; --c4: #bda0f2; --c5: #9fb2ba;
    --shade: 66%; --good: #70cf9b; --bad: #ff8f8f;
  }
}
body {
  margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 84rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.7rem; margin: 0 0 0.3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; }
.lead, figcaption, footer { color: var(--muted); }
.verdict { border-left: 4px solid var(--good); background: var(--raised); padding: 0.6rem 1rem; }
.verdict.bad { border-color: var(--bad); }
.verdict p { margin: 0.2rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.2rem; margin: 1rem 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.charts {
  display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr));
}
figure {
  margin: 0; padding: 0.9rem 1rem 0.6rem; border: 1px solid var(--rule); border-radius: 8px;
}
figure.wide { grid-column: 1 / -1; }
figcaption { font-size: 0.9rem; min-height: 2.7em; }
figure.wide figcaption { min-height: 0; }
figcaption b { color: var(--ink); display: block; font-size: 1rem; }
figure > svg { width: 100%; height: auto; display: block; }
.legend {
  margin: 0.2rem 0 0; font-size: 0.85rem; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem;
}
.legend svg { vertical-align: 0; margin-right: 0.4rem; }
svg text { font-size: 12px; fill: var(--muted); }
svg text.mark { font-size: 11px; }
.grid { stroke: var(--rule); stroke-width: 1; }
line.mark { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dot:hover { r: 6; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 0.25rem 0.5rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap;
}
th { color: var(--muted); font-weight: 600; }
th.text, td.text { text-align: left; }
footer { margin-top: 2.5rem; font-size: 0.85rem; }
"""
