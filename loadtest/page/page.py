"""The page as a whole."""

from collections.abc import Iterator, Sequence
from html import escape

from cli.html import document
from loadtest.figures import Figures
from loadtest.objectives import Objectives
from loadtest.page.charts import charts
from loadtest.page.svg import figure
from loadtest.page.theme import STYLE
from loadtest.page.timeline import timeline
from loadtest.results import Result
from loadtest.summary import Table, about, client_lines, counts_line, rates_table, times_table


def page(
    result: Result, found: Sequence[Figures], objectives: Objectives, problems: Sequence[str]
) -> str:
    """The page of a run; needs no network and no script."""
    server = result.about.get("server", {})
    title = f"Load test of {server.get('model', 'a model')}"
    swept = [one for one in found if not one.results[0].stage.searches] or list(found)
    swept.sort(key=lambda one: one.load)  # what was due by chance, not what was planned
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(str(result.about.get("began", "")))}</p>',
        *_verdict(result, found, problems),
        *_facts(about(result, objectives)),
        "<h2>Load and latency</h2>",
        '<div class="charts">',
        *map(figure, charts(result, swept)),
        "</div>",
        "<h2>Course of the run</h2>",
        '<div class="charts">',
        *map(figure, timeline(result)),
        "</div>",
        "<h2>Rates</h2>",
        *_table(rates_table(found)),
        "<h2>Times</h2>",
        *_table(times_table(found)),
        "<footer>Made by <code>deqlm loadtest</code> from the records of every request. Times "
        "are from when a request was due, of those that were answered.</footer>",
    ]
    return document(title, STYLE, "\n".join(filter(None, body)))


def _verdict(result: Result, found: Sequence[Figures], problems: Sequence[str]) -> Iterator[str]:
    yield f'<div class="verdict{" bad" if problems else ""}">'
    yield from (f"<p>{escape(problem)}</p>" for problem in problems)
    if not problems:
        yield "<p>Nothing failed that this run is held to.</p>"
    yield from (f"<p>{escape(line)}</p>" for line in client_lines(result, found))
    yield f"<p>{escape(counts_line(result))}</p>"
    yield "</div>"


def _facts(lines: Iterator[str]) -> Iterator[str]:
    yield "<dl>"
    for line in lines:
        name, _, told = line.partition(" ")
        yield f"<dt>{escape(name)}</dt><dd>{escape(told.strip())}</dd>"
    yield "</dl>"


def _table(table: Table) -> Iterator[str]:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if index in table.left else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    yield '<div class="scroll"><table>'
    yield f"<thead><tr>{cells(table.header, 'th')}</tr></thead><tbody>"
    yield from (f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    yield "</tbody></table></div>"
