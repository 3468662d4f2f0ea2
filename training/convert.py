"""``deqlm convert``: from the published ``.pth`` layout to a checkpoint folder, and back."""

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cli.parser import Parser
from deq_model.checkpoint import (
    check_finite,
    check_shapes,
    load_checkpoint,
    save_state,
    write_whole,
)
from deq_model.config import PRESETS, ModelConfig
from deq_model.errors import CheckpointError, DeqModelError
from deq_model.published import from_published, to_published
from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.errors import TokenizerError
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.word import WordTokenizer

_EXIT_FAILURE = 1
# What torch's restricted reader says of a pickle that names or calls something it must not.
_WANTS_CODE = re.compile(r"unsupported (global|class)|reduce for|can only (build|create)", re.I)


def read_pth(path: Path) -> dict[str, Tensor]:
    """The state dictionary of a ``.pth`` file; no code that the file may hold is run.

    Returns:
        Tensors that lie in the file until they are used, where its format allows that.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else than tensors by name,
            or asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        state = _load(path)
    except pickle.UnpicklingError as error:
        if _WANTS_CODE.search(str(error)):
            raise CheckpointError(
                f"{path} is refused: it is a pickle that would run code or make objects other "
                "than tensors"
            ) from None
        raise CheckpointError(f"{path} is damaged or not a .pth file") from None
    # Damage can make the reader fail with nearly any error.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a .pth file: {error}") from None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path} must hold tensors by name, got {type(state).__name__}")
    return dict(state)


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # a format before 1.6


def convert_from_pth(
    path: Path, folder: Path, config: ModelConfig, tokenizer: Tokenizer | None
) -> None:
    """Writes a checkpoint folder from a ``.pth`` file of the published layout.

    Raises:
        CheckpointError: the file is unusable, or does not fit the configuration.
        TokenizerError: the tokenizer is not of the vocabulary's size.
    """
    state = {name: _own(tensor) for name, tensor in from_published(read_pth(path), config).items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    check_finite(state)
    save_state(folder, config, state, tokenizer)


def convert_to_pth(folder: Path, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a ``.pth`` file of the published layout from a checkpoint folder.

    Raises:
        CheckpointError: the folder is unusable, or the file cannot be written.
        TokenizerError: the folder's tokenizer is unusable.
    """
    loaded = load_checkpoint(folder, device="cpu", dtype=dtype)
    published = to_published(loaded.model.state_dict(), loaded.config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: torch.save(published, temporary))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _own(tensor: Tensor) -> Tensor:
    """The tensor, alone in its storage: a slice of a shared one could not be written."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor.contiguous()
    return tensor.clone()


def main(argv: list[str], prog: str) -> int:
    """The command; returns the exit code."""
    parser = _parser(prog)
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    try:
        if arguments.to_pth:
            convert_to_pth(arguments.source, arguments.out)
        else:
            config = _config(arguments)
            convert_from_pth(arguments.source, arguments.out, config, _tokenizer(arguments))
    except (DeqModelError, TokenizerError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return _EXIT_FAILURE
    sys.stdout.write(f"wrote {arguments.out}\n")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Convert a .pth file of the published layout to a checkpoint folder, or back.",
    )
    parser.add_argument("source", type=Path, help=".pth file; a checkpoint folder with --to-pth")
    parser.add_argument(
        "out", type=Path, help="checkpoint folder to write; a .pth file with --to-pth"
    )
    parser.add_argument("--to-pth", action="store_true", help="convert back, to a .pth file")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--config", type=Path, help="architecture, a config.json")
    shape.add_argument("--preset", choices=sorted(PRESETS), help="a published architecture")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--vocab", type=Path, help="vocabulary, one word a line")
    words.add_argument("--tokenizer", type=Path, help="sentencepiece model")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.overwrite and _is_used(arguments.out):
        parser.error(f"{arguments.out} is there already; --overwrite replaces it")
    given = [
        name
        for name in ("config", "preset", "vocab", "tokenizer")
        if getattr(arguments, name) is not None
    ]
    if arguments.to_pth:
        if given:
            parser.error(f"--{given[0]} does not go with --to-pth: the folder says it")
        return
    if not {"config", "preset"} & set(given):
        parser.error("one of --config, --preset is needed")
    if not {"vocab", "tokenizer"} & set(given):
        parser.error("one of --vocab, --tokenizer is needed")


def _is_used(out: Path) -> bool:
    return any(out.iterdir()) if out.is_dir() else out.exists()


def _config(arguments: argparse.Namespace) -> ModelConfig:
    if arguments.preset is not None:
        return PRESETS[arguments.preset]
    return ModelConfig.load(arguments.config)


def _tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    if arguments.vocab is not None:
        return WordTokenizer.from_file(arguments.vocab)
    return SentencePieceTokenizer.from_file(arguments.tokenizer)
