"""``deqlm eval``: a checkpoint's perplexity on a text file."""

from typing import Any

import torch

from deq_model.checkpoint import LoadedCheckpoint
from training.evaluating.curves import Abscissa, CurvePoint, curve
from training.evaluating.figures import check_figures, evaluation_figure
from training.evaluating.output import open_folder, write_json, write_per_token
from training.evaluating.progress import EvalProgress
from training.evaluating.protocols import (
    EvalStreams,
    number_format,
    open_checkpoint,
    protocol_of,
    read_eval_text,
    streams_of,
)
from training.evaluating.report import EvalReport
from training.evaluating.solving import EvalOptions
from training.evaluation import evaluate
from training.options.evaluation import EvalRun
from training.plots.output import save_figure

REPORT_FILE = "evaluation.json"
PER_TOKEN_FILE = "per-token.npz"
FIGURE_FILES = ("curves.svg", "curves.png")


def score_file(run: EvalRun) -> dict[str, Any]:
    """Scores the text and writes the files that are asked for.

    Returns:
        JSON-ready figures, ``perplexity`` first.

    Raises:
        CheckpointError: the checkpoint is unusable, or has no tokenizer.
        DataError: the text cannot be read or encoded, or is too short.
        ConfigError: the device is not there.
        OptionsError: a folder cannot be written to.
        PlotError: figures are wanted and cannot be drawn.
    """
    _check_outputs(run)
    if run.threads:
        torch.set_num_threads(run.threads)
    report = measure(run)
    figures = report.figures()
    if run.per_token is not None:
        write_per_token(run.per_token, report)
    if run.out is not None:
        write_json(run.out / REPORT_FILE, figures)
        write_per_token(run.out / PER_TOKEN_FILE, report)
        figure = evaluation_figure(report)
        for name in FIGURE_FILES:
            save_figure(figure, run.out / name)
    return figures


def _check_outputs(run: EvalRun) -> None:
    """Says before any work is done what could not be written after it."""
    if run.per_token is not None:
        open_folder(run.per_token.parent, name="the folder of per_token")
    if run.out is not None:
        open_folder(run.out)
        check_figures()


def measure(run: EvalRun) -> EvalReport:
    """The evaluation and its curves; see ``score_file``."""
    dtype = number_format(run.dtype, run.tol)
    loaded, tokenizer = open_checkpoint(run.model, device=run.device, dtype=dtype)
    text = read_eval_text(run.data, tokenizer)
    options = protocol_of(run, loaded.config)
    streams = streams_of(text, options, published=run.published, eos_id=tokenizer.eos_id)
    with EvalProgress(1 + len(run.max_nfe_curve) + len(run.mem_len_curve)) as progress:
        result = evaluate(loaded.model, streams.ids, options, progress=progress.stage("evaluation"))
        curves = _curves(run, loaded, streams, options, progress)
    return EvalReport(
        result=result,
        options=options,
        size=streams.size,
        about=_about(run, loaded, dtype),
        text_tokens=len(text.ids),
        unknown=text.unknown,
        **curves,
    )


def _curves(
    run: EvalRun,
    loaded: LoadedCheckpoint,
    streams: EvalStreams,
    options: EvalOptions,
    progress: EvalProgress,
) -> dict[str, tuple[CurvePoint, ...]]:
    wanted: dict[Abscissa, tuple[int, ...]] = {
        "max_nfe": run.max_nfe_curve,
        "mem_len": run.mem_len_curve,
    }
    model, stage = loaded.model, progress.stage
    return {
        f"{over}_curve": curve(model, streams.ids, options, over, sorted(set(values)), stage=stage)
        for over, values in wanted.items()
    }


def _about(run: EvalRun, loaded: LoadedCheckpoint, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "model": str(run.model),
        "fingerprint": loaded.fingerprint,
        "data": str(run.data),
        "protocol": run.protocol,
        "dtype": str(dtype).removeprefix("torch."),
        "device": run.device,
    }
