"""The arrays of ``tests/data/golden``, token-major as the package has them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deq_model.config import ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.published import from_published

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES = ("post_ln", "div4", "flat_vocab")
PROBES = ("probe_pre_ln", "probe_local")


@dataclass(frozen=True)
class Golden:
    """A case: its name, its model in float64, its arrays, its segments."""

    name: str
    model: DEQLanguageModel
    arrays: dict[str, torch.Tensor]
    segments: list[tuple[int, int]]

    def rows(self, name: str) -> torch.Tensor:
        """An array of ``(batch, channels, length)``, as ``(batch, length, channels)``."""
        return self.arrays[name].transpose(1, 2)

    def tokens(self, segment: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a segment, ``(batch, length)`` each."""
        begin, end = self.segments[segment]
        tokens = self.arrays["tokens"]
        return tokens[:, begin:end], tokens[:, begin + 1 : end + 1]


def load_golden(name: str) -> Golden:
    """Reads a case."""
    values = json.loads((GOLDEN / f"{name}.json").read_text())
    lengths = values.pop("segment_lens")
    config = ModelConfig.from_dict(values)
    state = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    model = DEQLanguageModel(config).double()
    model.load_state_dict(from_published(state, config), strict=True)
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key].copy()) for key in file.files}
    ends = np.cumsum(lengths).tolist()
    return Golden(name, model.eval(), arrays, list(zip([0, *ends[:-1]], ends, strict=True)))
