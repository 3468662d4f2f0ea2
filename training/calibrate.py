"""``deqlm calibrate``: a map that gives solves their first states, fitted to a model's own."""

import json
import logging
import sys

from training.cli import EXIT_OK, reported
from training.flags import parse
from training.options.calibration import CalibrateRun

_DESCRIPTION = (
    "Fit a warm start: a map from a token's injection and the fixed point before it to a first "
    "state, from which a solve takes fewer calls of f than from zeros. It is measured on held-out "
    "text, and written beside the checkpoint if it saves enough."
)


def main(argv: list[str], prog: str) -> int:
    """Calibrates; returns the exit code."""
    groups = {"": CalibrateRun}
    run: CalibrateRun = parse(argv, prog=prog, description=_DESCRIPTION, groups=groups)[""]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return reported(prog, lambda: _calibrate(run))


def _calibrate(run: CalibrateRun) -> int:
    from training.calibration.run import calibrate

    found = calibrate(run)
    if run.json:
        sys.stdout.write(json.dumps(found.figures(), allow_nan=False) + "\n")
    else:
        sys.stdout.write(found.text())
    return EXIT_OK
