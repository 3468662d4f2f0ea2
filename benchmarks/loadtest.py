"""The sweep that docs/loadtest.md shows: the bundled model, served by its defaults.

``python -m benchmarks.loadtest --out DIR`` starts ``deqlm serve`` as a process of its own and has
``deqlm loadtest run`` send to it. ``--figures`` takes the figures, ``--picture`` the page as an
image, for which it needs chromium. What follows ``--`` goes to ``deqlm loadtest run``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.command import main as loadtest

ROOT = Path(__file__).resolve().parents[1]
_READY = re.compile(r"serving .* at (\S+), metrics (\S+)")
_START_S, _STOP_S, _DRAW_S = 180.0, 60.0, 120.0
_WIDTH, _HEIGHT, _SHARE = 1400, 3170, 0.7
_COLOURS = 128
_SWEEP = (
    *("--load.seconds", "13", "--load.warmup-s", "2", "--load.capacity-clients", "16"),
    *("--load.times", "0.25,0.5,0.75,0.9,1.1,1.5,2.5", "--seed", "3"),
    *("--timeout-s", "2", "--objective.score-s", "2"),
)


@contextmanager
def served(log: Path) -> Iterator[tuple[str, str]]:
    """Runs a server; where it answers, and where its metrics are."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    command = [sys.executable, "-m", "server", "--port=0", "--metrics-port=0"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
    try:
        until = time.monotonic() + _START_S
        while not (found := _READY.search(log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server does not start: " + log.read_text())
            time.sleep(0.1)
        yield found[1], found[2]
        process.terminate()
        process.wait(_STOP_S)
    finally:
        process.kill()
        process.wait()


def draw(page: Path, to: Path) -> None:
    """The upper part of a page as an image small enough to be kept."""
    from PIL import Image

    whole = to.with_suffix(".whole.png")
    subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--window-size={_WIDTH},{_HEIGHT}", f"--screenshot={whole}", page.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=_DRAW_S,
    )
    with Image.open(whole) as image:
        small = image.convert("RGB").resize(
            (round(image.width * _SHARE), round(image.height * _SHARE)), Image.Resampling.LANCZOS
        )
    whole.unlink()
    few = small.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(to, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Sweep; the exit code is that of ``deqlm loadtest run``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--figures", type=Path, help="JSON to write")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("more", nargs="*", metavar="OPTION", help="behind --, for the run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        with served(Path(folder) / "log") as (address, metrics):
            flags = ["--address", address, "--metrics", metrics, "--out", str(args.out)]
            code = loadtest(["run", *_SWEEP, *flags, *args.more], "deqlm loadtest")
    if not (args.out / "figures.json").exists():  # why has been said
        return code
    if args.figures is not None:
        shutil.copyfile(args.out / "figures.json", args.figures)
    if args.picture is not None:
        draw((args.out / "report.html").resolve(), args.picture)
    return code


if __name__ == "__main__":
    sys.exit(main())
