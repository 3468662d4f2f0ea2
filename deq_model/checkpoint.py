"""Checkpoints as folders: ``config.json``, ``model.safetensors``, the tokenizer's file, a card.

Parameters are stored under their native names, a tied table once. Every file is written under a
temporary name and renamed when it is whole, so that a crash never leaves half a file.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deq_model.config import ModelConfig
from deq_model.errors import CheckpointError, ConfigError
from deq_model.files import write_whole as write_whole
from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.load import check_vocabulary, load_tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import MODEL_FILE
from deq_model.tokenizers.word import VOCABULARY_FILE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
_FINGERPRINT_DIGITS = 16
_TOKENIZER_FILES = (VOCABULARY_FILE, MODEL_FILE)
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        model: in evaluation mode, on the device and in the dtype asked for.
        config: of the model.
        tokenizer: of the vocabulary's size; None if the folder has none.
        fingerprint: 16 hexadecimal digits that tell its configuration and weights from others.
    """

    model: DEQLanguageModel
    config: ModelConfig
    tokenizer: Tokenizer | None
    fingerprint: str


def load_checkpoint(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> LoadedCheckpoint:
    """Reads a checkpoint folder.

    Args:
        folder: with ``config.json`` and ``model.safetensors``, and ``vocab.txt`` or
            ``tokenizer.model`` if it has a tokenizer.
        device: where to put the parameters.
        dtype: what to cast them to.

    Raises:
        CheckpointError: a file is missing or damaged, a parameter is missing, extra, of a wrong
            shape or not finite.
        TokenizerError: the tokenizer's file is damaged, or of another size than the vocabulary.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is not a folder")
    config = load_config(folder)
    tokenizer = _load_tokenizer(folder, config)
    state = _read_weights(folder / WEIGHTS_FILE, config, torch.device(device), dtype)
    model = build_model(config, state)
    return LoadedCheckpoint(
        model=model.eval(), config=config, tokenizer=tokenizer, fingerprint=fingerprint(folder)
    )


def load_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder. Raises CheckpointError."""
    try:
        return ModelConfig.load(folder / CONFIG_FILE)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from None


def build_model(config: ModelConfig, state: Mapping[str, Tensor]) -> DEQLanguageModel:
    """A model that takes over the tensors of ``state``, none copied.

    Raises:
        CheckpointError: a parameter is missing, extra or of a wrong shape.
    """
    model = _skeleton(config)
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(True)


def check_shapes(found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raises CheckpointError unless names and shapes are those of the configuration's model."""
    expected = {name: tuple(p.shape) for name, p in _skeleton(config).named_parameters()}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"extra {name} {shape}" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise CheckpointError(f"weights do not fit the configuration: {_list(problems)}")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a parameter holds NaN or an infinity."""
    bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(f"weights hold values that are not finite: {_list(bad)}")


def save_checkpoint(
    folder: Path,
    model: DEQLanguageModel,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a checkpoint folder, file by file, each whole or not at all.

    Args:
        folder: made if it does not exist; files of an older checkpoint are replaced.
        model: whose parameters to write.
        tokenizer: whose file to write.
        card: Markdown text of ``README.md``; None leaves a card that is there.
        dtype: of the parameters on disk; None for the model's.

    Raises:
        CheckpointError: the folder cannot be written.
        TokenizerError: the tokenizer is not of the vocabulary's size.
    """
    state = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_state(folder, model.config, state, tokenizer, card)


def save_state(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
) -> None:
    """As ``save_checkpoint``, from the native parameters themselves."""
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.n_token)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS_FILE, lambda path: save_file(dict(state), path))
        write_whole(folder / CONFIG_FILE, config.save)
        if tokenizer is not None:
            _save_tokenizer(folder, tokenizer)
        if card is not None:
            write_whole(folder / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error


def fingerprint(folder: Path) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the configuration and the weights file."""
    identity = json.dumps(load_config(folder).identity(), sort_keys=True)
    digest = hashlib.sha256(identity.encode())
    path = folder / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _skeleton(config: ModelConfig) -> DEQLanguageModel:
    with torch.device("meta"):
        return DEQLanguageModel(config)


def _read_weights(
    path: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors are read, cast and moved one by one: little more memory than the result's."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint has no {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            check_shapes({name: tuple(file.get_slice(name).get_shape()) for name in names}, config)
            state = {name: file.get_tensor(name).clone().to(device, dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    check_finite(state)
    return state


def _load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, config.n_token)
    return tokenizer


def _save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as name:
        tokenizer.save(Path(name))
        written = list(Path(name).iterdir())
        for path in written:
            path.replace(folder / path.name)
    for stale in set(_TOKENIZER_FILES) - {path.name for path in written}:
        (folder / stale).unlink(missing_ok=True)


def _list(problems: list[str]) -> str:
    rest = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
