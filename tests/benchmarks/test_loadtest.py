"""The sweep of the documentation in short, and its picture where chromium is there."""

import json
import shutil

from benchmarks import loadtest


def test_the_sweep(tmp_path):
    figures, picture = tmp_path / "figures.json", tmp_path / "page.png"
    flags = ["--out", str(tmp_path / "run"), "--figures", str(figures)]
    if shutil.which("chromium"):
        flags += ["--picture", str(picture)]
    short = ["--load.seconds", "1", "--load.warmup-s", "0", "--load.rates", "4"]
    assert loadtest.main([*flags, "--", *short]) == 0
    (stage,) = json.loads(figures.read_text())
    assert stage["label"] == "4/s"
    assert stage["repeats"][0]["statuses"]["OK"] > 0
    if shutil.which("chromium"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 300_000
