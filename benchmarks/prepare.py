"""What it takes to prepare a text of WikiText-103's size: time, and memory of the process.

``python benchmarks/prepare.py [--folder DIR] [--scale 1.0]`` writes such a text into a temporary
folder (540 MB, 103 million tokens, 267,735 types with Zipf-like counts, as many lines as in the
original), has ``deqlm prepare`` make a word vocabulary and arrays of it twice, and prints the
figures.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENS = 103_227_021
LINES = 1_801_350
TYPES = 267_735
_CHUNK = 1_000_000
_LETTERS = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype="S1")
_ZIPF_OFFSET = 2.7
"""Mandelbrot's addition to the rank."""


def words(generator: np.random.Generator) -> NDArray[np.bytes_]:
    """``(TYPES - 1,)`` words, each with a space behind it, frequent ones shorter; no ``<eos>``."""
    found: dict[bytes, None] = {b"<unk>": None}
    while len(found) < TYPES - 1:
        length = 1 + int(np.log2(len(found)) * 0.28 + generator.integers(0, 3))
        found[_LETTERS[generator.integers(0, 26, length)].tobytes()] = None
    return np.array([word + b" " for word in found])


def write_text(
    path: Path,
    vocabulary: NDArray[np.bytes_],
    generator: np.random.Generator,
    *,
    tokens: int,
    lines: int,
) -> None:
    """A text of so many tokens, newlines counted; in a long one every type occurs."""
    ranks = np.arange(len(vocabulary))
    share = 1 / (ranks + _ZIPF_OFFSET)
    bounds = np.cumsum(share / share.sum())
    rare = generator.permutation(ranks)  # each once, spread over the text
    newline, left = b"\n", tokens - lines
    with path.open("wb") as file:
        while left:
            n = min(_CHUNK, left)
            drawn = np.searchsorted(bounds, generator.random(n)).clip(max=len(ranks) - 1)
            now, rare = rare[: n // 8], rare[n // 8 :]
            drawn[generator.choice(n, len(now), replace=False)] = now
            text = vocabulary[drawn].tolist()
            ends = generator.choice(n, round(lines * n / (tokens - lines)), replace=False)
            for end in ends.tolist():
                text[end] = text[end] + newline
            file.write(b"".join(text))
            left -= n


def prepare(arguments: list[str]) -> str:
    """Time and most resident memory of a ``deqlm prepare`` in a process of its own."""
    began = time.monotonic()
    pid = os.spawnv(
        os.P_NOWAIT, sys.executable, [sys.executable, "-m", "cli", "prepare", *arguments]
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"deqlm prepare ended with status {os.waitstatus_to_exitcode(status)}")
    seconds = time.monotonic() - began
    cpu = usage.ru_utime + usage.ru_stime
    return f"{seconds:.1f} s, {cpu:.1f} s of it computing, at most {usage.ru_maxrss >> 10} MB"


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full length")
    parser.add_argument("--seed", type=int, default=0, help="of the text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        generator = np.random.default_rng(options.seed)
        vocabulary = words(generator)
        for split, share in (("train", options.scale), ("valid", 0.002), ("test", 0.002)):
            path = folder / f"wiki.{split}.tokens"
            write_text(
                path,
                vocabulary,
                generator,
                tokens=round(TOKENS * share),
                lines=round(LINES * share),
            )
        size = (folder / "wiki.train.tokens").stat().st_size
        print(f"text: {size / 1e6:.0f} MB, {round(TOKENS * options.scale):,} tokens", flush=True)
        out = folder / "out"
        for which in ("first", "second"):
            figures = prepare(["wikitext-103", str(folder), "--out", str(out)])
            print(f"{which} time: {figures}", flush=True)
        types = sum(1 for _ in (out / "vocab.txt").open("rb"))
        tokens = np.load(out / "train.npy", mmap_mode="r").shape[0]
        print(f"prepared: {tokens:,} tokens, {types:,} types", flush=True)


if __name__ == "__main__":
    main()
