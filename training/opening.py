"""What a run begins with: data, model, and the state it goes on from.

All that can be refused is refused here, before the run writes anything but its prepared data.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.base import Tokenizer
from training.data import BlockLengths, PreparedData, Streams, open_data
from training.distributed import Ranks, rank_device
from training.errors import DataError, OptionsError, ResumeError
from training.options.train import TrainOptions
from training.progress import stage
from training.state import RunState, check_options, check_vocabulary, load_state, newest_state
from training.validation import batch_size

_LOG = logging.getLogger(__name__)
STATES_FOLDER = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a run begins with.

    Attributes:
        tokenizer: of the data.
        vocabulary: its fingerprint.
        streams: this rank's share of the training text.
        valid: ``(n,)`` int64 ids of the validation text, as many as are used.
        lengths: of the blocks.
        model: with its first parameters.
        generator: source of all further random numbers, on the model's device.
        state: to go on from, None for a new run.
    """

    tokenizer: Tokenizer
    vocabulary: str
    streams: Streams
    valid: Tensor
    lengths: BlockLengths
    model: DEQLanguageModel
    generator: torch.Generator
    state: RunState | None


def open_run(options: TrainOptions, ranks: Ranks) -> Opening:
    """Reads the data and makes the model.

    Raises:
        TrainingError: options, data or the saved state are unusable.
        DeqModelError, TokenizerError: the architecture or the tokenizer are.
    """
    _check_ranks(options, ranks)
    device = rank_device(options.run.device)
    newest = _resumable(options)
    state = None if newest is None else load_state(newest, device=device)
    if state is not None:
        check_options(state, options)
    _warn(options)
    lengths = _lengths(options)
    with _stage("reading the data", ranks):
        data = open_data(
            options.data,
            out=options.run.out,
            seed=options.run.seed,
            remake="changed" if state is None else "never",
        )
    if state is not None:
        check_vocabulary(state, data.manifest.tokenizer)
    streams, valid = _cut(data, options, ranks)
    generator = torch.Generator(device).manual_seed(options.run.seed)
    with _stage("making the model", ranks):
        model = _make_model(options, data.tokenizer.n_token, device, generator)
    return Opening(
        tokenizer=data.tokenizer,
        vocabulary=data.manifest.tokenizer,
        streams=streams,
        valid=valid,
        lengths=lengths,
        model=model,
        generator=generator,
        state=state,
    )


def _stage(text: str, ranks: Ranks) -> AbstractContextManager[None]:
    """Shows what takes its time before the first step; one rank does so for all."""
    return stage(text) if ranks.is_first else nullcontext()


def _warn(options: TrainOptions) -> None:
    """Says what is allowed and seldom meant."""
    pretraining, steps = options.equilibrium.pretrain_steps, options.optimiser.max_steps
    if pretraining >= steps:
        _LOG.warning(
            "equilibrium.pretrain_steps = %d is not below optimiser.max_steps = %d: no step will "
            "solve for the fixed point",
            pretraining,
            steps,
        )


def _check_ranks(options: TrainOptions, ranks: Ranks) -> None:
    batch, chunks = options.data.batch_size, options.optimiser.batch_chunks
    if batch % ranks.size:
        raise OptionsError(
            f"data.batch_size must be divisible by the number of ranks, {ranks.size}, got {batch}; "
            f"take {batch + -batch % ranks.size}"
        )
    if chunks > batch // ranks.size:
        raise OptionsError(
            "optimiser.batch_chunks must be at most the streams of a rank, "
            f"{batch} / {ranks.size} = {batch // ranks.size}, got {chunks}"
        )


def _resumable(options: TrainOptions) -> Path | None:
    """The state to go on from. A run that is there but not wanted is left alone."""
    newest = newest_state(options.run.out / STATES_FOLDER)
    if newest is not None and not options.run.resume:
        # Its log, data and model would be replaced one by one, and mixed until then.
        raise ResumeError(
            f"run.out {options.run.out} holds a run already ({newest.name}); go on with it by "
            "run.resume true, or name another folder"
        )
    return newest


def _lengths(options: TrainOptions) -> BlockLengths:
    return BlockLengths(
        tgt_len=options.model.tgt_len,
        std=options.data.tgt_len_std,
        minimum=options.data.tgt_len_min,
        seed=options.run.seed,
    )


def _cut(data: PreparedData, options: TrainOptions, ranks: Ranks) -> tuple[Streams, Tensor]:
    """The training text in streams, and the validation text that is used."""
    for split, info in data.manifest.splits.items():
        _LOG.info("%s: %d tokens, %d unknown", split, info.tokens, info.unknown)
    batch, tgt_len = options.data.batch_size, options.model.tgt_len
    streams = Streams(data.train, batch_size=batch, share=ranks.share(batch))
    if streams.length < tgt_len:
        raise DataError(
            f"model.tgt_len must be at most {streams.length} for a text of {len(data.train)} "
            f"tokens in data.batch_size = {batch} streams, got {tgt_len}"
        )
    valid = data.valid[: options.valid.tokens or None].astype(np.int64)
    if len(valid) < 2 * batch_size(options):
        raise DataError(
            f"the validation text must have at least {2 * batch_size(options)} tokens for "
            f"{batch_size(options)} streams (valid.batch_size or data.batch_size), got {len(valid)}"
        )
    return streams, torch.from_numpy(valid)


def _make_model(
    options: TrainOptions, n_token: int, device: torch.device, generator: torch.Generator
) -> DEQLanguageModel:
    initial = options.model
    with torch.device(device):
        model = DEQLanguageModel(initial.config(n_token=n_token, recipe="deqlm train"))
    model.reset(
        kind=initial.init,
        std=initial.init_std,
        bound=initial.init_range,
        projection_std=initial.init_projection_std,
        generator=generator,
    )
    return model.train()
