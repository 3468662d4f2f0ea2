"""A calibration from checkpoint and text to the file beside the checkpoint."""

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from deq_model.checkpoint import CARD_FILE, LoadedCheckpoint
from deq_model.files import write_whole
from deq_model.function import EquilibriumWeights
from deq_model.solvers.options import SolverOptions
from deq_model.tokenizers.base import Tokenizer
from deq_model.warm_start import WarmStart, save_warm_start
from training.calibration.fit import fit_linear, fit_network, stored
from training.calibration.measure import Judge
from training.calibration.report import Calibration, with_section
from training.calibration.samples import even_streams, samples_of
from training.calibration.window import SolvedStreams, solve_streams
from training.data import read_tokens
from training.evaluating.output import open_folder, write_json
from training.evaluating.progress import EvalProgress
from training.evaluating.protocols import open_checkpoint
from training.options.calibration import CalibrateRun

REPORT_FILE = "warm_start.json"
_HELD_OUT = 10
"""Without a text of its own the last part of so many is held out."""
_JUDGED_STREAMS = 16
_FROM_ZEROS = 8
"""One stream of so many is solved from zeros: a first map saves calls in the others."""

_log = logging.getLogger(__name__)


def calibrate(run: CalibrateRun) -> Calibration:
    """Fits, measures, and writes the map if it saves enough; else nothing is written.

    Raises:
        CheckpointError: the checkpoint is unusable, or has no tokenizer.
        DataError: a text is unusable, or too short.
        ConfigError: the device is not there.
        OptionsError: the folder cannot be written to.
    """
    began = time.monotonic()
    if run.threads:
        torch.set_num_threads(run.threads)
    loaded, tokenizer = open_checkpoint(run.model, device=run.device, dtype=torch.float32)
    open_folder(run.model, name="model")
    fitted_on, held_out = _texts(run, tokenizer)
    loaded.model.requires_grad_(False)
    weights = loaded.model.f.fold().detach()
    windows = tuple(sorted({1, run.window}))
    with EvalProgress(3 + len(windows) + len(run.kinds) * (1 + len(windows))) as progress:
        maps, solved = _fit(run, loaded, weights, fitted_on, progress)
        judge = Judge(
            loaded.model,
            weights,
            held_out,
            SolverOptions(tol=run.tol, max_nfe=run.max_nfe),
            windows=windows,
            progress=progress.stage("held-out text, exact"),
        )
        measured = [judge.measure("zeros", None, progress.stage)]
        measured += [judge.measure(one.kind, one, progress.stage) for one in maps]
    found = Calibration(
        run=run,
        fingerprint=loaded.fingerprint,
        measured=tuple(measured),
        fit_tokens=fitted_on.numel(),
        valid_tokens=held_out.numel(),
        fit_unconverged=solved.unconverged,
        seconds=time.monotonic() - began,
    )
    if found.kept:
        _write(run.model, next(one for one in maps if one.kind == found.best.start), found)
    return found


def _texts(run: CalibrateRun, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Streams to fit on ``(B, T)`` and held-out ones."""
    ids = read_tokens(run.data, tokenizer, split="train").ids
    if run.valid is None:
        rest = len(ids) - len(ids) // _HELD_OUT
        ids, held_out = ids[:rest], ids[rest:]
        name = f"the last tenth of data {run.data} (without valid it is held out)"
    else:
        held_out = read_tokens(run.valid, tokenizer, split="valid").ids
        name = f"valid {run.valid}"
    eos_id = tokenizer.eos_id
    return (
        even_streams(
            ids, tokens=run.tokens, streams=run.streams, eos_id=eos_id, name=f"data {run.data}"
        ),
        even_streams(
            held_out,
            tokens=run.valid_tokens,
            streams=min(run.streams, _JUDGED_STREAMS),
            eos_id=eos_id,
            name=name,
        ),
    )


def _fit(
    run: CalibrateRun,
    loaded: LoadedCheckpoint,
    weights: EquilibriumWeights,
    tokens: Tensor,
    progress: EvalProgress,
) -> tuple[list[WarmStart], SolvedStreams]:
    solved = _fixed_points(run, loaded, weights, tokens, progress)
    fitted, tuning = samples_of(loaded.model, tokens, solved.z_star)
    maps: list[WarmStart] = []
    for kind in run.kinds:
        told = progress.stage(f"fit of the {kind} map")
        if kind == "linear":
            maps.append(fit_linear(fitted, tuning))
            continue
        maps.append(
            fit_network(
                fitted,
                tuning,
                hidden=run.hidden,
                epochs=run.epochs,
                seed=run.seed,
                layer_norm=not loaded.config.pre_lnorm,
                progress=told,
            )
        )
    return maps, solved


def _fixed_points(
    run: CalibrateRun,
    loaded: LoadedCheckpoint,
    weights: EquilibriumWeights,
    tokens: Tensor,
    progress: EvalProgress,
) -> SolvedStreams:
    """Solves the streams: the first few from zeros, the others from a map fitted to those."""
    options = SolverOptions(tol=run.fit_tol, max_nfe=run.max_nfe)
    number = max(2, len(tokens) // _FROM_ZEROS)
    first = solve_streams(
        loaded.model,
        weights,
        tokens[:number],
        options,
        progress=progress.stage("fixed points to fit to: the first"),
    )
    told = progress.stage("fixed points to fit to: the others")
    if number >= len(tokens):
        return first
    start = fit_linear(*samples_of(loaded.model, tokens[:number], first.z_star))
    others = solve_streams(
        loaded.model, weights, tokens[number:], options, warm_start=start, progress=told
    )
    return first.with_others(others)


def _write(folder: Path, warm_start: WarmStart, found: Calibration) -> None:
    figures, card = found.figures(), folder / CARD_FILE
    save_warm_start(
        folder,
        stored(warm_start),
        fingerprint=found.fingerprint,
        figures=figures,
    )
    write_json(folder / REPORT_FILE, figures)
    old = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.resolve().name}\n"
    text = with_section(old, found.section())
    write_whole(card, lambda path: path.write_text(text, encoding="utf-8"))
    _log.info("wrote the warm start into %s", folder)
