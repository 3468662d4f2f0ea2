"""Two runs side by side."""

import pytest

from loadtest.compare import changes, differences, unlike
from loadtest.figures import figures
from loadtest.objectives import Objectives
from tests.loadtest.made import record, stage, stage_result, write_run

NONE = Objectives(score_s=None)


def some(count, seconds, *, repeat=0):
    records = [
        record(at_s=i / count, seconds=seconds, scored=5, logprob=-9.0) for i in range(count)
    ]
    return stage_result(*records, stage=stage(repeat=repeat))


def found(before, after):
    made = changes(figures(before, NONE), figures(after, NONE), percentiles=True)
    return {one.name: one for one in made}


def test_slower_is_worse_and_quicker_is_better():
    there, back = (
        found([some(100, 0.1)], [some(100, 0.2)]),
        found([some(100, 0.2)], [some(100, 0.1)]),
    )
    assert there["whole p50"].verdict(0.1) == "worse"
    assert there["whole p50"].ratio == pytest.approx(2.0, rel=2e-3)
    assert back["whole p50"].verdict(0.1) == "better"
    assert there["whole p50"].verdict(1.5) == ""
    assert there["answered/s"].verdict(0.1) == ""


def test_fewer_answers_are_worse():
    assert found([some(100, 0.1)], [some(50, 0.1)])["answered/s"].verdict(0.1) == "worse"
    assert found([some(50, 0.1)], [some(100, 0.1)])["tokens/s"].verdict(0.1) == "better"


def test_percentiles_of_few_are_not_compared():
    assert "whole p50" not in found([some(8, 0.1)], [some(8, 0.2)])
    assert "whole p99" not in found([some(100, 0.1)], [some(100, 0.2)])


def test_what_repeats_differ_in_tells_nothing():
    before = [some(100, 0.1), some(60, 0.1, repeat=1)]
    assert found(before, [some(65, 0.1)])["answered/s"].verdict(0.1) == ""
    assert found(before, [some(40, 0.1)])["answered/s"].verdict(0.1) == "worse"


def test_what_times_of_repeats_differ_in_tells_nothing():
    before = [some(100, 0.1), some(100, 0.4, repeat=1)]
    assert found(before, [some(100, 0.3)])["whole p50"].verdict(0.1) == ""
    assert found(before, [some(100, 0.5)])["whole p50"].verdict(0.1) == "worse"


def test_settings_that_differ_are_told():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 before, 3 after",
        "d: None before, 4 after",
    ]


def test_what_the_server_had_solved_before_is_told():
    def one(shared):
        return figures([stage_result(record(solved=100 - shared, shared=shared))], NONE)

    assert list(unlike(one(3), one(9))) == []
    (told,) = unlike(one(3), one(82))
    assert told.startswith("10/s: 3% of the tokens had been solved by the server before, 82% after")


@pytest.fixture
def on_disk(tmp_path):
    """Writes a run whose requests took so long."""

    def write(name, seconds):
        return write_run(tmp_path / name, some(200, seconds), version=name)

    return write


def test_the_command(loadtest, on_disk):
    quick, slow = on_disk("quick", 0.1), on_disk("slow", 0.3)
    code, told, notes = loadtest("compare", quick, slow)
    assert code == 3
    assert "+199.9%" in told and "worse" in told
    assert "differs: server.version: quick before, slow after" in notes
    assert loadtest("compare", slow, quick)[0] == 0
    assert loadtest("compare", quick, slow, "--tolerance", "3")[0] == 0
    assert loadtest("compare", quick, slow, "--percentiles", "no")[0] == 0
    assert loadtest("compare", quick)[0] == 2
    assert loadtest("compare", quick, slow, "--tolerance", "-1")[0] == 2
    assert loadtest("compare", "--help")[0] == 0


def test_a_report_of_damaged_files(loadtest, on_disk):
    folder = on_disk("run", 0.1)
    assert loadtest("report", folder)[0] == 0
    (folder / "requests-0.jsonl").write_text('{"stage":0}\n')
    code, _, told = loadtest("report", folder)
    assert code == 1 and "requests-0.jsonl, line 1: is no record" in told
    (folder / "run.json").write_text("{}")
    code, _, told = loadtest("report", folder)
    assert code == 1 and "run.json: settings are damaged" in told
