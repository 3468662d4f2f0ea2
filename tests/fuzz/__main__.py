"""Fuzz the decoders: ``python -m tests.fuzz --count 1000000``, see docs/testing.md."""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

FINDINGS = Path("fuzz-findings")


def main() -> int:
    """Share the inputs among the decoders, each tried in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs over all decoders")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--only", default="", help="decoders whose names hold this")
    parser.add_argument("--engine", choices=("coverage", "chance"), help="default: what is there")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="folder for what is found")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine is None:
        options.engine = "coverage" if importlib.util.find_spec("atheris") else "chance"
    return _child(options) if options.child else _parent(options)


def _parent(options: argparse.Namespace) -> int:
    from tests.fuzz.table import TARGETS

    targets = [target for name, target in TARGETS.items() if options.only in name]
    shares = sum(target.share for target in targets)
    total = bad = 0
    print("| decoder | inputs | taken | defects | seconds |\n|---|---|---|---|---|", flush=True)
    for target in targets:
        count = -(-options.count * target.share // shares)
        begun = time.monotonic()
        told = _run(options, target.name, count)
        seconds = time.monotonic() - begun
        total, bad = total + told["inputs"], bad + told["defects"]
        share = told["taken"] / max(1, told["inputs"])
        cells = [
            target.name,
            f"{told['inputs']:,}",
            f"{share:.0%}",
            told["defects"],
            f"{seconds:.0f}",
        ]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"| all, seed {options.seed}, by {options.engine} | {total:,} | | {bad} | |")
    if bad:
        print(f"what was found lies in {options.findings}", file=sys.stderr)
    return int(bad > 0)


def _run(options: argparse.Namespace, name: str, count: int) -> dict[str, int]:
    arguments = [
        *("--child", name, "--count", str(count), "--seed", str(options.seed)),
        *("--engine", options.engine, "--findings", str(options.findings)),
    ]
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    ended = subprocess.run(command, capture_output=True)
    with contextlib.suppress(ValueError, IndexError):
        if ended.returncode == 0:
            return dict(json.loads(ended.stdout.splitlines()[-1]))
    # It crashed, hung or grew: that is a defect as well.
    options.findings.mkdir(parents=True, exist_ok=True)
    (options.findings / f"{name.replace(' ', '-')}-crash.txt").write_bytes(ended.stderr)
    return {"inputs": 0, "taken": 0, "defects": 1}


def _child(options: argparse.Namespace) -> int:
    warnings.simplefilter("ignore")
    if options.engine == "coverage":
        import atheris

        from tests.fuzz.engines import TRACED

        with atheris.instrument_imports(include=TRACED, enable_loader_override=False):
            from tests.fuzz.table import TARGETS
    else:
        from tests.fuzz.table import TARGETS
    from tests.fuzz.engines import by_chance, by_coverage
    from tests.fuzz.findings import Findings

    found = Findings(TARGETS[options.child], options.findings)

    def done() -> None:
        told = {"inputs": found.inputs, "taken": found.taken, "defects": len(found.places)}
        print(f"\n{json.dumps(told)}", flush=True)

    engine = by_coverage if options.engine == "coverage" else by_chance
    engine(found, count=options.count, seed=options.seed, done=done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
