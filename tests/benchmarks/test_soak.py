"""The soak in short, and its verdict on what grows."""

import random

from benchmarks import soak, soak_report


def samples(**grows):
    noise = random.Random(0)
    return [
        {
            "s": 10.0 * i,
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
    assert "resident memory" in soak_report.problems(samples(rss_mib=0.5))[0]
    assert soak_report.problems(samples(threads=1))[0].startswith("threads grew by")
    assert soak_report.problems(samples(fds=1))[0].startswith("file descriptors grew by")
    assert soak_report.problems(samples(leases=1))[0].startswith("leases were left at rest")


def test_a_line_through_noise_holds_the_slope():
    line = soak_report.fit([10.0 * i for i in range(60)], [s["rss_mib"] for s in samples()])
    assert line.low < 0 < line.high


def test_a_short_soak(tmp_path):
    """Through the real process: nothing is left at rest, and it stops in an orderly way."""
    out = tmp_path / "soak.jsonl"
    code = soak.main(["--seconds", "36", "--cycle-s", "3", "--out", str(out)])
    assert code == 0
    assert len(out.read_text().splitlines()) >= 5
