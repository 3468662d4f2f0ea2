"""The page: HTML that needs nothing but itself."""

from collections.abc import Sequence
from html import escape

from cli.html import document
from training.plots.curves import curve_figure
from training.plots.output import css_colour, inline_svg
from training.report.charts import Chart, Entry, charts
from training.report.reading import RunLog
from training.report.tables import Table, details, tables
from training.report.theme import style_sheet

_DASHES = {"solid": "", "dashed": ' stroke-dasharray="6 3"', "dotted": ' stroke-dasharray="2 2.5"'}
_WIDTH, _HEIGHT = 4.1, 2.6  # inches: at that size the letters suit a phone's width too


def page(runs: Sequence[RunLog]) -> str:
    """The whole page of one run, or of several side by side.

    Raises:
        PlotError: matplotlib is not installed.
    """
    heading = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    drawn = charts(runs)
    body = [
        f"<h1>{escape(heading)}</h1>",
        f'<p class="lead">{escape(_lead(runs))}</p>',
        *(_table(table) for table in tables(runs)),
        "<h2>Course of the run</h2>" if len(runs) == 1 else "<h2>Course of the runs</h2>",
        *_key(runs),
        '<div class="charts">',
        *(line for number, chart in enumerate(drawn) for line in _chart(chart, number)),
        "</div>",
        *_missing(drawn),
        *(_table(table) for table in details(runs)),
        "<footer>Made by <code>deqlm report</code> from what the runs have logged.</footer>",
    ]
    return document(f"{heading} – training report", style_sheet(), "\n".join(body))


def _lead(runs: Sequence[RunLog]) -> str:
    if len(runs) > 1:
        return "Training of deep-equilibrium language models: " + ", ".join(r.name for r in runs)
    return "Training of a deep-equilibrium language model"


def _key(runs: Sequence[RunLog]) -> list[str]:
    """What the marks in several charts mean."""
    told = []
    if any(run.number("equilibrium.pretrain_steps") for run in runs):
        told.append(
            "Where the ground is grey, f was applied a fixed number of times instead of being "
            "solved (pretraining): its residual there is the change of the last application."
        )
    if any(run.bad_steps for run in runs):
        told.append("Triangles at the foot mark bad steps.")
    return [f'<p class="lead">{escape(" ".join(told))}</p>'] if told else []


def _missing(drawn: Sequence[Chart]) -> list[str]:
    """Says what is not there, instead of empty axes."""
    titles = [chart.title for chart in drawn if chart.panel is None]
    if not titles:
        return []
    told = "The logs have nothing yet, or nothing at all, for: " + "; ".join(titles) + "."
    return [f'<p class="lead missing">{escape(told)}</p>']


def _chart(chart: Chart, number: int) -> list[str]:
    if chart.panel is None:
        return []
    figure = curve_figure(chart.panel, width=_WIDTH, height=_HEIGHT)
    return [
        "<figure>",
        f"<h3>{escape(chart.title)}</h3>",
        *([_legend(chart.legend)] if chart.legend else []),
        inline_svg(figure, name=f"c{number}", label=escape(chart.title)),
        f'<figcaption class="note">{escape(chart.note)}</figcaption>',
        "</figure>",
    ]


def _legend(entries: Sequence[Entry]) -> str:
    items = "".join(f"<li>{_sample(entry)}{escape(entry.label)}</li>" for entry in entries)
    return f'<ul class="legend">{items}</ul>'


def _sample(entry: Entry) -> str:
    """A short piece of the line."""
    colour = css_colour(entry.colour)
    dot = f'<circle cx="13" cy="5" r="3" fill="{colour}"/>' if entry.markers else ""
    return (
        '<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26" '
        f'stroke="{colour}" stroke-width="2"{_DASHES[entry.stroke]}/>{dot}</svg>'
    )


def _table(table: Table) -> str:
    kind = f' class="{table.kind}"' if table.kind else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "\n".join(_row(row, i in table.marked) for i, row in enumerate(table.rows))
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="table"><table{kind}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>{note}</div>"
    )


def _row(cells: Sequence[str], stands_out: bool) -> str:
    first = f'<th scope="row">{escape(cells[0])}</th>'
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    kind = ' class="stands-out"' if stands_out else ""
    return f"<tr{kind}>{first}{rest}</tr>"
