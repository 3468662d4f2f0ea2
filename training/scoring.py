"""``deqlm eval``: a checkpoint's perplexity on a text file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deq_model.checkpoint import LoadedCheckpoint, load_checkpoint, write_whole
from deq_model.errors import CheckpointError
from training.data import read_tokens
from training.evaluation import EvalOptions, Evaluation, evaluate
from training.options.evaluation import EvalRun

_EXACT_BELOW = 1e-4  # a tolerance that float32 does not reach in every model


def score_file(run: EvalRun) -> dict[str, Any]:
    """Scores the text and writes the per-token file if one is asked for.

    Returns:
        JSON-ready figures, ``perplexity`` first.

    Raises:
        CheckpointError: the checkpoint is unusable, or has no tokenizer.
        TokenizerError: the tokenizer is unusable, or cannot encode the text.
        DataError: the text cannot be read, or is too short.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    dtype = _dtype(run)
    loaded = load_checkpoint(run.model, device=run.device, dtype=dtype)
    if loaded.tokenizer is None:
        raise CheckpointError(f"checkpoint {run.model} has no tokenizer")
    tokens = read_tokens(run.data, loaded.tokenizer)
    protocol = _protocol(run, loaded)
    result = evaluate(loaded.model, tokens.ids, protocol)
    if run.per_token is not None:
        _write_per_token(run.per_token, result)
    return {
        "perplexity": result.perplexity,
        "mean_nll": result.mean_nll,
        "scored_tokens": result.scored_tokens,
        "nfe": result.nfe,
        "unconverged": result.unconverged,
        "worst_residual": result.worst_residual,
        "unknown": tokens.unknown,
        "model": str(run.model),
        "fingerprint": loaded.fingerprint,
        "data": str(run.data),
        "mem_len": protocol.mem_len,
        "tgt_len": protocol.tgt_len,
        "batch_size": protocol.batch_size,
        "method": protocol.solver.method,
        "tol": protocol.solver.tol,
        "max_nfe": protocol.solver.max_nfe,
        "depth": protocol.solver.depth,
        "whole_block": protocol.whole_block,
        "retries": protocol.retries,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _dtype(run: EvalRun) -> torch.dtype:
    if run.dtype == "auto":
        return torch.float64 if run.tol < _EXACT_BELOW else torch.float32
    return torch.float64 if run.dtype == "float64" else torch.float32


def _protocol(run: EvalRun, loaded: LoadedCheckpoint) -> EvalOptions:
    config = loaded.config
    return EvalOptions(
        batch_size=run.batch_size,
        tgt_len=config.tgt_len if run.tgt_len is None else run.tgt_len,
        mem_len=config.mem_len if run.mem_len is None else run.mem_len,
        solver=run.solver(),
        whole_block=run.whole_block,
        retries=run.retries,
        max_blocks=run.max_blocks or None,
    )


def _write_per_token(path: Path, result: Evaluation) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would add .npz to a name
            np.savez_compressed(file, nll=result.nll.numpy())

    write_whole(path, write)
