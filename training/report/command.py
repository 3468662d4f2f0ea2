"""The command ``deqlm report``."""

import sys
from pathlib import Path

from cli.parser import Parser, Tall

EXIT_OK = 0
EXIT_FAILURE = 1
NAME = "report.html"


def main(argv: list[str], prog: str) -> int:
    """Writes the page and says where; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    runs: list[Path] = arguments.runs
    from training.errors import TrainingError

    try:
        out = write_report(runs, arguments.out)
    except TrainingError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return EXIT_FAILURE
    sys.stdout.write(f"{out}\n")
    return EXIT_OK


def write_report(runs: list[Path], out: Path | None = None) -> Path:
    """Writes the page of runs; returns where.

    Args:
        runs: folders of runs, or their logs.
        out: file to write; None for report.html, in a single run's folder or else here.

    Raises:
        ReportError: a run has no log that can be read, or the page cannot be written.
        PlotError: matplotlib is not installed.
    """
    from deq_model.files import write_whole
    from training.report.page import page
    from training.report.reading import ReportError, read_runs

    text = page(read_runs(runs))
    path = out if out is not None else _place(runs)
    if not path.name:
        raise ReportError(f"out must name a file, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder's name need not be text; what is none in it is shown as question marks.
        write_whole(path, lambda file: file.write_bytes(text.encode("utf-8", "replace")))
    except OSError as error:
        raise ReportError(f"the report cannot be written to {path}: {error.strerror}") from error
    return path


def _place(runs: list[Path]) -> Path:
    if len(runs) > 1:
        return Path(NAME)
    return (runs[0].parent if runs[0].is_file() else runs[0]) / NAME


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        formatter_class=Tall,
        description="Write one HTML page with the curves of a training run, or of several side "
        "by side. It needs no network and no script. A run that is still going can be read.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (its run.out), or a log"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write; default: report.html in the run's folder, or here for several runs",
    )
    return parser
