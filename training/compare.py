"""``deqlm compare``: models side by side on one text, in a table, JSON and one picture."""

import logging
import sys
from typing import Any

from training.cli import EXIT_OK, reported
from training.flags import parse
from training.options.comparison import CompareRun

TABLE_FILE = "comparison.md"
REPORT_FILE = "comparison.json"
FIGURE_FILES = ("comparison.svg", "comparison.png")
_DESCRIPTION = (
    "Compare models on one text: perplexity at a tight tolerance, calls of f to each tolerance, "
    "residuals call by call, spectral radius, and perplexity against the budget of calls."
)


def main(argv: list[str], prog: str) -> int:
    """Compares; returns the exit code."""
    run: CompareRun = parse(argv, prog=prog, description=_DESCRIPTION, groups={"": CompareRun})[""]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return reported(prog, lambda: _print(compare(run)))


def _print(figures: dict[str, Any]) -> int:
    sys.stdout.write(figures["table"])
    return EXIT_OK


def compare(run: CompareRun) -> dict[str, Any]:
    """Measures the models one after another and writes the files.

    Returns:
        JSON-ready figures, and the Markdown as ``table``.

    Raises:
        CheckpointError: a checkpoint is unusable, or has no tokenizer.
        DataError: the text is unusable, or too short.
        OptionsError: the device is not there, or the folder cannot be written to.
        PlotError: figures cannot be drawn.
    """
    import torch

    from deq_model.files import write_whole
    from training.comparing.figure import comparison_figure
    from training.comparing.measure import measure_model
    from training.comparing.report import comparison_figures, comparison_table
    from training.evaluating.figures import check_figures
    from training.evaluating.output import open_folder, write_json
    from training.evaluating.progress import EvalProgress
    from training.plots.output import save_figure

    open_folder(run.out)
    check_figures()
    if run.threads:
        torch.set_num_threads(run.threads)
    with EvalProgress(len(run.model) * (1 + len(set(run.budgets)))) as progress:
        models = [
            measure_model(run, folder, name, progress=progress)
            for folder, name in zip(run.model, run.names, strict=True)
        ]
    figures, table = comparison_figures(run, models), comparison_table(run, models)
    write_json(run.out / REPORT_FILE, figures)
    write_whole(run.out / TABLE_FILE, lambda path: path.write_text(table, encoding="utf-8"))
    figure = comparison_figure(run, models)
    for name in FIGURE_FILES:
        save_figure(figure, run.out / name)
    return figures | {"table": table}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "training.compare"))
