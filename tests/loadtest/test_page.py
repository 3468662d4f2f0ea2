"""The page: whole, readable without a network, and with what was measured."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.figures import figures
from loadtest.objectives import Objectives
from loadtest.page.page import page
from loadtest.page.scales import scale
from tests.loadtest.made import record, result, stage, stage_result

VOID = {"meta", "line", "circle", "polyline"}


class Nesting(HTMLParser):
    """Raises where tags are not closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def sweep():
    """Three rates, of which the last is more than the server can do."""
    stages = []
    for number, rate in enumerate((2.0, 4.0, 8.0)):
        records = [
            record(
                "generate" if i % 3 == 0 else "score",
                at_s=i / rate,
                seconds=0.1 * rate + i / 100,
                stage=number,
                scored=5,
                logprob=-10.0,
                generated=2 if i % 3 == 0 else 0,
                times_s=[i / rate + 0.05, i / rate + 0.1] if i % 3 == 0 else [],
                status="RESOURCE_EXHAUSTED" if rate == 8.0 and i % 4 == 1 else "OK",
            )
            for i in range(int(rate * 10))
        ]
        it = stage(number=number, label=f"{rate:g}/s", rate=rate)
        stages.append(stage_result(*records, stage=it, run_s=12.0 * number))
    return result(*stages)


@pytest.fixture(scope="module")
def made():
    run, objectives = sweep(), Objectives()
    return page(run, figures(run.stages, objectives), objectives, ["4/s <was> bad"])


def test_it_needs_nothing_but_itself(made):
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(|src=|href=", made)


def test_its_tags_are_closed_in_turn(made):
    nesting = Nesting()
    nesting.feed(made)
    assert nesting.open == []
    assert sum(tag == "figure" for tag, _ in nesting.seen) == 10


def test_its_drawings_are_xml_with_numbers_alone(made):
    drawings = re.findall(r"<svg viewBox.*?</svg>", made, re.S)
    assert len(drawings) == 10
    for drawing in drawings:
        assert "nan" not in drawing and "inf" not in drawing
        ET.fromstring(drawing)


def test_it_has_light_and_dark(made):
    assert "prefers-color-scheme: dark" in made
    light, dark = made.split("@media", 1)[0], made.split("@media", 1)[1]
    for name in re.findall(r"var\((--[\w-]+)\)", made):
        assert f"{name}:" in light and f"{name}:" in dark


def test_what_was_measured_stands_there(made):
    assert "Latency over throughput" in made
    assert "4/s &lt;was&gt; bad" in made
    assert "p99" in made and "RESOURCE_EXHAUSTED" not in made.split("<h2>Rates")[0]


def test_a_run_in_which_nothing_was_answered():
    run = result(stage_result(record(status="UNAVAILABLE"), ended_early="the server is gone"))
    made = page(run, figures(run.stages, Objectives()), Objectives(), ["it ended early"])
    Nesting().feed(made)
    assert "it ended early" in made


@given(
    st.sampled_from(["linear", "log", "percentile"]),
    st.lists(st.floats(1e-6, 99.9), min_size=1, max_size=20),
)
def test_scales_hold_their_values_in_order(kind, values):
    made = scale(kind, values)
    places = [made.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert 1 <= len(made.ticks) <= 16
    assert all(0 <= made.at(tick) <= 1 for tick in made.ticks)
    if kind != "percentile":
        assert made.least <= min(values) * 1.001 and max(values) <= made.most * 1.001
