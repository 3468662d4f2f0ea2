"""The page of a run, from logs of every state of repair."""

import json
import math
import os
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.options.data import DataOptions
from training.options.equilibrium import EquilibriumOptions
from training.options.run import RunOptions
from training.options.train import TrainOptions
from training.report.charts import MOST_POINTS, charts, thinned
from training.report.command import main, write_report
from training.report.page import page
from training.report.reading import ReportError, RunLog, read_run, read_runs, series
from training.report.tables import details, tables

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


def options(**equilibrium: Any) -> dict[str, Any]:
    return TrainOptions(
        data=DataOptions(train=Path("a.txt"), valid=Path("b.txt")),
        run=RunOptions(out=Path("run"), seed=7),
        equilibrium=EquilibriumOptions(jac_loss_weight=0.5, jac_loss_freq=0.4, **equilibrium),
    ).to_dict()


def step(number: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "event": "step",
        "step": number,
        "epoch": 0,
        "seconds": number / 2,
        "loss": 4.0 + 10 / (number + 1),
        "perplexity": 60.0,
        "nfe_forward": 8.0,
        "nfe_backward": 6.0,
        "residual": 0.007,
        "residual_backward": 0.03,
        "unconverged_forward": 0.1,
        "unconverged_backward": None,
        "jac_loss": 0.05,
        "spectral_radius": 0.9,
        "grad_norm": 0.7,
        "lr": 1e-3,
        "skipped": 0,
        "tokens_per_s": 1000.0,
    }
    return plain | changes


def valid(number: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "event": "valid",
        "step": number,
        "mean_nll": 4.5,
        "perplexity": 90.0 - number / 100,
        "nfe": 8.0,
        "unconverged": 25,
        "scored_tokens": 100,
        "residual_by_call": [1.0, 0.1, 0.01],
    }
    return plain | changes


def start(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"event": "start", "step": number, "options": options(), **changes}


BAD = {
    "event": "bad_step",
    "step": 150,
    "reason": "the loss is a <spike>",
    "action": "skip",
    "loss": 9.25,
    "residual": None,
    "grad_norm": 33.0,
}


def written(folder: Path, *events: dict[str, Any], tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(event) + "\n" for event in events) + tail
    (folder / "log.jsonl").write_text(text)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    steps = [step(number) for number in range(20, 401, 20)]
    events = [start(parameters=1234567), *steps, valid(200), BAD, valid(400)]
    return written(tmp_path / "mine", *events)


def rows(runs: list[RunLog]) -> dict[str, list[str]]:
    """Cells of all tables by the first of their row."""
    found = [*tables(runs), *details(runs)]
    return {row[0]: list(row[1:]) for table in found for row in table.rows}


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


def test_a_line_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), tail='{"event": "step", "st')
    found = read_run(path)
    assert (len(found.steps), found.unreadable) == (1, 0)


def test_a_damaged_line_inside_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), tail='{"ev\n[1]\n' + json.dumps(step(40)))
    assert read_run(path).unreadable == 2
    assert rows(read_runs([path]))["Damaged lines of the log"] == ["2"]


def test_steps_that_a_resume_made_again_count_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a", start(), step(20), step(40), start(20), step(40, loss=1.0))
    found = read_run(path)
    assert [(record["step"], record["loss"] == 1.0) for record in found.steps] == [
        (20, False),
        (40, True),
    ]
    assert rows(read_runs([path]))["Begun and gone on"] == ["2 times"]


def test_a_log_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    logged = options()
    logged["recipe"] = logged.pop("equilibrium") | {"pretrain_steps": 10}
    logged["run"]["eval_every"] = 5
    path = written(tmp_path / "a", start(options=logged), step(20))
    found = rows(read_runs([path]))
    assert found["equilibrium.pretrain_steps"] == ["10", "0"]
    assert found["run.eval_every"] == ["5", "–"]


def test_what_the_log_lacks_comes_from_the_model_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a", {"event": "step", "step": 20, "loss": 4.0})
    model = path / "model"
    model.mkdir()
    header = {"__metadata__": {}, "w": {"shape": [3, 5]}, "b": {"shape": [5]}}
    encoded = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    (model / "README.md").write_text("# Card\n```json\n" + json.dumps(options()) + "\n```\n")
    found = read_run(path)
    assert found.parameters == 20
    assert found.number("run.seed") == 7


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, struct.pack("<Q", 1 << 60), b"x" * 50])
def test_a_damaged_model_beside_the_log_costs_a_line_only(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "a", start())
    (path / "model").mkdir()
    (path / "model" / "model.safetensors").write_bytes(content)
    assert read_run(path).parameters is None


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"is not a run's folder: it has no log\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="nothing does not exist"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("tail", ["", "\n", "{", "\x00\x01"])
def test_a_log_without_a_line_is_an_error(tmp_path: Path, tail: str) -> None:
    path = written(tmp_path / "a", tail=tail)
    with pytest.raises(ReportError, match="no line that can be read"):
        read_run(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from([*step(1), *valid(1), *start(), "parameters", "reason"])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from([start(), step(9), valid(9), BAD]), FIELDS, JSON)))
def test_fields_of_the_wrong_kind_are_left_out(
    tmp_path: Path, changes: list[tuple[dict[str, Any], str, Any]]
) -> None:
    events = [event | {name: value} for event, name, value in changes]
    path = written(tmp_path / "a", start(), *events)
    runs = read_runs([path])
    rows(runs)
    for chart in charts(runs):
        for curve in chart.panel.curves if chart.panel else ():
            assert all(value is None or math.isfinite(value) for value in curve.y)


@pytest.mark.parametrize("size", ["1e308", "-1e308", "1" + "0" * 400, "1e400", "NaN"])
def test_numbers_that_no_axes_have_room_for_are_left_out(tmp_path: Path, size: str) -> None:
    lines = f'{{"event": "step", "step": 2, "loss": {size}, "lr": {size}, "grad_norm": {size}}}\n'
    lines += f'{{"event": "step", "step": {size}, "loss": 1}}\n'
    runs = read_runs([written(tmp_path / "a", step(1), step(3), tail=lines)])
    page(runs)
    assert [record["step"] for record in runs[0].steps] == [1, 3, 2]
    assert series(runs[0].steps, "loss")[0] == [1, 3]


def test_a_line_of_brackets_is_damaged(tmp_path: Path) -> None:
    tail = "[" * 100_000 + "\n" + json.dumps(step(2)) + "\n"
    assert read_run(written(tmp_path / "a", step(1), tail=tail)).unreadable == 1


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
    assert capsys.readouterr().err.splitlines()[1:] == ["`deqlm report --help` tells what it takes"]


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
