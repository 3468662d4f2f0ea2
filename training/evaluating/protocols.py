"""From what ``deqlm eval`` was asked to what is run: the text as streams, and the options."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deq_model.checkpoint import LoadedCheckpoint, load_checkpoint
from deq_model.config import ModelConfig
from deq_model.devices import find_device
from deq_model.errors import CheckpointError
from deq_model.tokenizers.base import Encoding, Tokenizer
from deq_model.tokenizers.errors import TokenizerError
from training.data import is_prepared, read_text, read_tokens, token_sizes
from training.errors import DataError
from training.evaluating.solving import EvalOptions
from training.options.evaluation import SERVED_WINDOW, EvalDtype, EvalRun

_EXACT_BELOW = 1e-4  # a tolerance that float32 does not reach in every model


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalText:
    """A text in tokens, and what its bits per byte need.

    Attributes:
        ids: ``(n,)`` int64.
        size: ``(n,)`` int64, bytes of UTF-8 that each token adds to the text before it.
        unknown: how many tokens stand for words outside the vocabulary.
    """

    ids: Tensor
    size: Tensor
    unknown: int

    def first(self, count: int) -> "EvalText":
        """The first ``count`` tokens; all where there are fewer, or ``count`` is 0."""
        if count == 0 or count >= len(self.ids):
            return self
        return EvalText(ids=self.ids[:count], size=self.size[:count], unknown=self.unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalStreams:
    """What ``evaluate`` is given.

    Attributes:
        ids: ``(streams · length,)`` int64.
        size: ``(streams, length − 1)`` int64, bytes of each target.
    """

    ids: Tensor
    size: Tensor


def read_eval_text(path: Path, tokenizer: Tokenizer) -> EvalText:
    """A text file, or a split of a prepared folder, in tokens.

    Raises:
        DataError: it cannot be read, or the tokenizer cannot encode it, or is another one than
            the folder's.
    """
    if is_prepared(path):
        split = read_tokens(path, tokenizer)
        ids = split.ids.long()
        return EvalText(ids=ids, size=token_sizes(ids, tokenizer), unknown=split.unknown)
    text = read_text(path)
    try:
        encoding = tokenizer.encode(text)
    except TokenizerError as error:
        raise DataError(
            f"text {path} cannot be encoded by the checkpoint's tokenizer: {error}"
        ) from None
    return EvalText(
        ids=torch.tensor(encoding.ids, dtype=torch.int64),
        size=_sizes(encoding),
        unknown=encoding.unknown,
    )


def _sizes(encoding: Encoding) -> Tensor:
    """Bytes from the end of the token before to a token's own: white space between counts."""
    end = torch.tensor(encoding.end, dtype=torch.int64)
    return end - torch.cat([end.new_zeros(1), end[:-1]])


def open_checkpoint(
    folder: Path, *, device: str, dtype: torch.dtype
) -> tuple[LoadedCheckpoint, Tokenizer]:
    """A checkpoint and its tokenizer.

    Raises:
        CheckpointError: it is unusable, or has no tokenizer.
        ConfigError: there is no such device.
    """
    loaded = load_checkpoint(folder, device=find_device(device), dtype=dtype)
    if loaded.tokenizer is None:
        raise CheckpointError(
            f"checkpoint {folder} has no tokenizer: it needs tokenizer.model or vocab.txt "
            "(deqlm convert puts it there)"
        )
    return loaded, loaded.tokenizer


def number_format(choice: EvalDtype, tol: float) -> torch.dtype:
    """The dtype that ``--dtype`` stands for at a tolerance."""
    if choice == "auto":
        return torch.float64 if tol < _EXACT_BELOW else torch.float32
    return torch.float64 if choice == "float64" else torch.float32


def protocol_of(run: EvalRun, config: ModelConfig) -> EvalOptions:
    """The options of an evaluation, what is unset taken from the checkpoint's configuration."""
    tgt_len = config.tgt_len if run.tgt_len is None else run.tgt_len
    return EvalOptions(
        batch_size=run.n_stream,
        tgt_len=tgt_len,
        mem_len=config.mem_len if run.mem_len is None else run.mem_len,
        solver=run.solver(),
        whole_block=run.by_block,
        window=0 if run.published else min(run.window or SERVED_WINDOW, tgt_len),
        retries=run.n_retries,
        max_blocks=run.max_blocks or None,
        radius_blocks=run.radius_blocks,
    )


def streams_of(
    text: EvalText, options: EvalOptions, *, published: bool, eos_id: int
) -> EvalStreams:
    """The text as the protocol cuts it.

    As published, equal contiguous streams, of which every token but the first is scored.
    Chunk-invariant, each part of the text is a session of its own, which begins with ``<eos>``,
    so that all its tokens are scored. What is left over is dropped.

    Raises:
        DataError: the text is too short.
    """
    check_length(len(text.ids), options, published=published)
    batch = options.batch_size
    length = len(text.ids) // batch
    ids = text.ids[: length * batch].view(batch, length)
    size = text.size[: length * batch].view(batch, length)
    if published:
        return EvalStreams(ids=ids.flatten(), size=size[:, 1:])
    primed = torch.cat([ids.new_full((batch, 1), eos_id), ids], dim=1)
    return EvalStreams(ids=primed.flatten(), size=size)


def check_length(tokens: int, options: EvalOptions, *, published: bool) -> None:
    """Raises DataError unless each stream of so many tokens has a whole block, or a token."""
    batch, tgt_len = options.batch_size, options.tgt_len
    needed = tgt_len + 1 if published else 1
    if tokens // batch >= needed:
        return
    most = tokens // needed
    if most:
        raise DataError(
            f"batch_size must be at most {most} for a text of {tokens} tokens and blocks of "
            f"{tgt_len}, got {batch}"
        )
    raise DataError(
        f"tgt_len must be at most {tokens - 1} for a text of {tokens} tokens in one stream, "
        f"got {tgt_len}"
        if tokens > 1
        else f"text must have at least 2 tokens to score one after another, got {tokens}"
    )
