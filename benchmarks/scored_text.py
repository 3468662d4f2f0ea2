"""What the benchmarks that score one text share: their flags, its tokens, and what came out."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.models import TrainedModel
from server.engine.solve import SolveStats


@dataclass(frozen=True, slots=True)
class Outcome:
    """Log-probabilities ``(n,)``, solver figures, and seconds."""

    logprob: torch.Tensor
    stats: SolveStats
    seconds: float


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that name the model, the text, and how much of it to score."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("text", type=Path, help="text file, plain or .xz")
    parser.add_argument("--tokens", type=int, default=1000, help="of the text to score")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of an operation")
    return parser


def prepare(options: argparse.Namespace) -> tuple[int, ...]:
    """Sets the threads that the flags ask for; returns the tokens to score."""
    torch.set_num_threads(options.threads)
    model = TrainedModel(name="measured", folder=options.model, text=options.text)
    return model.tokens(options.tokens)
