"""The soak in short, and its verdict on what grows."""

import random

import pytest

from benchmarks import soak, soak_report


def samples(every_s=30.0, **grows):
    noise = random.Random(0)
    return [
        {
            "s": every_s * i,
            "rss_mib": 500 + noise.gauss(0, 1) + i * grows.get("rss_mib", 0),
            "threads": 13 + i * grows.get("threads", 0),
            "fds": 15 + i * grows.get("fds", 0),
            "calls_done": {},
            **{name: grows.get(name, 0) for name in soak_report.ZEROS},
        }
        for i in range(60)
    ]


def test_what_stays_is_no_problem():
    assert soak_report.problems(samples()) == []


def test_what_grows_or_is_left_is_named():
    assert soak_report.problems(samples(rss_mib=0.5))[0].startswith("resident memory, MiB: +")
    assert soak_report.problems(samples(threads=1))[0].startswith("threads: +120.00 an hour")
    assert soak_report.problems(samples(fds=1))[0].startswith("file descriptors: +")
    assert soak_report.problems(samples(leases=1))[0].startswith("leases were left at rest")


def test_a_short_run_tells_gross_growth_of_memory_alone():
    assert soak_report.problems(samples(every_s=3.0, rss_mib=0.5)) == []
    assert soak_report.problems(samples(every_s=3.0, rss_mib=1.5)) != []


def test_a_line_tells_its_slope_in_an_hour_and_how_sure_it_is():
    found = samples()
    line = soak_report.fit([s["s"] for s in found], [s["rss_mib"] for s in found])
    assert line.low < 0 < line.high
    found = samples(rss_mib=0.05)  # every 30 s
    line = soak_report.fit([s["s"] for s in found], [s["rss_mib"] for s in found])
    assert line.low < 6 < line.high
    assert line.low > 0


@pytest.mark.timeout(600)
def test_three_minutes(tmp_path):
    """Through the real process: nothing is left at rest, and it stops in an orderly way."""
    out = tmp_path / "soak.jsonl"
    code = soak.main(["--seconds", "180", "--cycle-s", "12", "--out", str(out)])
    assert code == 0
    assert len(out.read_text().splitlines()) >= 8


def test_a_bad_word_in_the_log_is_told_with_what_surrounds_it():
    with pytest.raises(RuntimeError, match="one\nTraceback of two"):
        soak._check_end(0, "\n" * 9000 + "one\nTraceback of two" + "\n" * 9000)
    with pytest.raises(RuntimeError, match="ended with 1"):
        soak._check_end(1, "fine")
    soak._check_end(0, "fine")
