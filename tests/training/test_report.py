"""The page of a run: what it shows, and the command that writes it."""

import math
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.training.report_logs import BAD, options, rows, start, step, valid, written
from training.report.charts import MOST_POINTS, charts, thinned
from training.report.command import main, write_report
from training.report.page import page
from training.report.reading import RunLog, read_runs

TITLES = [
    "Loss",
    "Validation perplexity",
    "Calls of f",
    "Residual at the end of a solve",
    "Residual by solver step",
    "Tokens above the tolerance",
    "Spectral radius",
    "Jacobian term",
    "Learning rate",
    "Norm of the gradient",
    "Speed",
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    steps = [step(number) for number in range(20, 401, 20)]
    events = [start(parameters=1234567), *steps, valid(200), BAD, valid(400)]
    return written(tmp_path / "mine", *events)


def titles(runs: list[RunLog]) -> list[str]:
    return [chart.title for chart in charts(runs) if chart.panel is not None]


class Checker(HTMLParser):
    """Collects what a page has; raises where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        for name in ("src", "href", "xlink:href"):
            self.addresses += [named[name] or ""] if name in named else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_full_log_has_all_charts(run: Path) -> None:
    runs = read_runs([run])
    assert titles(runs) == TITLES
    text = page(runs)
    found = Checker(text)
    assert found.tags.count("figure") == len(TITLES)
    assert "The logs have nothing" not in text
    needs_nothing_but_itself(text, found)


def needs_nothing_but_itself(text: str, found: Checker) -> None:
    assert not {"script", "link", "img"} & set(found.tags)
    assert all(address.startswith("#") for address in found.addresses)
    assert "url(http" not in text
    assert "@import" not in text
    assert len(set(found.ids)) == len(found.ids)
    used = {part.partition(")")[0] for part in text.split("var(")[1:]}
    light, dark = text.split("prefers-color-scheme: dark")[:2]
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_the_summary_tells_what_came_out(run: Path) -> None:
    found = rows(read_runs([run]))
    assert found["Steps"] == ["400 of 5,000 (8\N{NO-BREAK SPACE}%) so far"]
    assert found["Time"] == ["3 min"]
    assert found["Best validation perplexity"] == ["86.00 at step 400"]
    assert found["Parameters"] == ["1,234,567"]
    assert found["Tokens trained on"] == ["409,600"]
    assert found["Validation tokens above the tolerance"] == ["25.0\N{NO-BREAK SPACE}%"]
    assert found["Bad steps"] == ["1, 0 of them skipped"]


def test_options_off_their_defaults_are_listed(run: Path) -> None:
    found = rows(read_runs([run]))
    assert found["equilibrium.jac_loss_weight"] == ["0.5", "0"]
    assert found["run.seed"] == ["7", "0"]
    assert not {"run.out", "optimiser.lr"} & set(found)


def test_bad_steps_are_marked_and_listed(run: Path) -> None:
    runs = read_runs([run])
    loss = charts(runs)[0].panel
    assert loss is not None
    assert list(loss.marks) == [150.0]
    expected = ["the loss is a <spike>", "skip", "9.25", "not finite", "33"]
    assert rows(runs)["150"] == expected


def test_charts_over_steps_share_their_x_axis(tmp_path: Path) -> None:
    runs = read_runs([written(tmp_path / "a", start(), step(100), valid(200), step(260))])
    panels = [chart.panel for chart in charts(runs) if chart.panel is not None]
    over_steps = [panel for panel in panels if panel.x_label == "step"]
    assert {panel.x_range for panel in over_steps} == {(0.0, 260.0)}
    assert len(over_steps) == len(TITLES) - 1


def test_texts_of_a_log_are_escaped(tmp_path: Path) -> None:
    text = page(read_runs([written(tmp_path / "<b>", start(), BAD)]))
    assert "<td>the loss is a &lt;spike&gt;</td>" in text
    assert "<h1>&lt;b&gt;</h1>" in text
    evil = "</td><script>alert('1')</script>"
    options = {"data": {"train": evil, evil: evil}, evil: {evil: evil}, "model": evil}
    bad = BAD | {"action": evil, "step": 150.5}
    runs = [written(tmp_path / name, start() | {"options": options}, bad) for name in "ab"]
    assert "script" not in Checker(page(read_runs(runs))).tags


def test_the_weight_of_the_jacobian_term_is_that_of_the_options(tmp_path: Path) -> None:
    logged = options(jac_loss_increment=0.25, jac_loss_every=100)
    path = written(tmp_path / "a", start(options=logged), step(50), step(150), step(250))
    (chart,) = [chart for chart in charts(read_runs([path])) if chart.title == "Jacobian term"]
    assert chart.panel is not None
    term, weight, product = chart.panel.curves
    assert list(weight.y) == [0.5, 0.75, 1.0]
    assert list(product.y) == pytest.approx([0.05 * w for w in (0.5, 0.75, 1.0)])
    assert list(term.y) == [0.05] * 3


def test_residuals_by_call_are_shown_at_five_moments(tmp_path: Path) -> None:
    events = [valid(number) for number in range(0, 1000, 100)]
    runs = read_runs([written(tmp_path / "a", start(), *events)])
    (chart,) = [chart for chart in charts(runs) if chart.title == "Residual by solver step"]
    labels = ["step 0", "step 200", "step 400", "step 700", "step 900"]
    assert [entry.label for entry in chart.legend] == labels
    assert chart.panel is not None
    assert list(chart.panel.curves[0].x) == [1, 2, 3]
    assert chart.panel.y_scale == "log"


def test_several_runs_share_their_axes(tmp_path: Path, run: Path) -> None:
    other = written(tmp_path / "other", start(options=options(pretrain_steps=9)), step(20))
    runs = read_runs([run, other])
    text = page(runs)
    assert Checker(text).tags.count("figure") == len(TITLES)
    assert "2 runs side by side" in text
    chart = charts(runs)[-1]
    assert [entry.label for entry in chart.legend] == ["mine", "other"]
    row = '<tr class="stands-out"><th scope="row">equilibrium.pretrain_steps</th><td>0</td>'
    assert row + "<td>9</td>" in text
    needs_nothing_but_itself(text, Checker(text))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [written(tmp_path / name / "run", start()) for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    same = read_runs([paths[0], paths[0]])
    assert [run.name.rpartition(" ")[2] for run in same] == ["(1)", "(2)"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([start()], []),
        ([step(20)], [title for title in TITLES if title not in TITLES[1:5:3]]),
        ([start(), valid(20)], [TITLES[i] for i in (0, 1, 2, 4, 5)]),
        ([start(), {"event": "step", "step": 20, "loss": 4.0}], ["Loss"]),
        ([start(), {"event": "step", "step": 20, "loss": None}], []),
        ([start(), {"event": "step", "loss": 4.0}], []),
        ([start(options=None), valid(20, residual_by_call=[None, "a"])], None),
    ],
)
def test_charts_without_data_are_left_out(
    tmp_path: Path, events: list[dict[str, Any]], expected: list[str] | None
) -> None:
    runs = read_runs([written(tmp_path / "a", *events)])
    if expected is not None:
        assert titles(runs) == expected
    assert len([chart for chart in charts(runs) if chart.panel is None]) >= 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    runs = read_runs([written(tmp_path / "a", start(), {"event": "step", "step": 20, "loss": 4.0})])
    told = "for: " + "; ".join(TITLES[1:]) + "."
    assert "The logs have nothing yet, or nothing at all, " + told in page(runs)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = write_report([written(tmp_path / os.fsdecode(b"a\xff"), start())])
    assert "<h1>a?</h1>" in path.read_text(encoding="utf-8")


def test_long_curves_are_means_of_neighbours() -> None:
    x = [float(i) for i in range(4 * MOST_POINTS + 1)]
    thin_x, thin_y = thinned(x, [2 * value for value in x])
    assert len(thin_x) <= MOST_POINTS
    assert thin_y == [2 * value for value in thin_x]
    assert thinned([1.0], [2.0]) == ([1.0], [2.0])


def test_the_command_says_where_the_page_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)], "deqlm report") == 0
    path = run / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(found.name for found in run.iterdir()) == ["log.jsonl", "report.html"]


def test_a_log_may_be_named_itself(run: Path) -> None:
    assert write_report([run / "log.jsonl"]) == run / "report.html"


def test_errors_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "nothing")], "deqlm report") == 1
    assert capsys.readouterr().err.startswith("deqlm report: ")
    assert main([str(run), "--out", str(run / "log.jsonl" / "a.html")], "deqlm report") == 1
    assert "the report cannot be written to" in capsys.readouterr().err
    assert main([str(run), "--out", ""], "deqlm report") == 1
    assert "out must name a file, got ." in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([], "deqlm report")
    assert stopped.value.code == 2
    told = "deqlm report: RUN must be given; `deqlm report --help` tells what it takes\n"
    assert capsys.readouterr().err == told


def test_without_matplotlib_the_error_names_the_extra(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(run)], "deqlm report") == 1
    assert "pip install 'deqlm[train]'" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_help_and_the_page_need_no_torch(run: Path) -> None:
    out = run / "new" / "page.html"
    code = (
        "import sys\nfrom training.report.command import main\n"
        "try: main(['--help'], 'deqlm report')\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        f"assert main([{str(run)!r}, '--out', {str(out)!r}], '') == 0\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    assert out.is_file()


def test_infinite_perplexity_is_no_best_one(tmp_path: Path) -> None:
    events = [valid(10, perplexity=None), valid(20, perplexity=math.inf), valid(30)]
    path = written(tmp_path / "a", start(), *events)
    assert rows(read_runs([path]))["Best validation perplexity"] == ["89.70 at step 30"]
