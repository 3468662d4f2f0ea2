"""States of a session that come from elsewhere: whether a model can go on from them."""

import torch
from torch import Tensor

from deq_model.config import ModelConfig
from server.engine.snapshots import States

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Of the formats that states are kept in."""


def tensor_of(states: States | None, position: int, config: ModelConfig) -> Tensor | None:
    """States ``(n, d_model)`` of a history; None where they do not fit.

    Args:
        states: of the last tokens, by the checkpoint that goes on from them.
        position: tokens of the history.
        config: of the model.
    """
    rows = min(position + 1, config.klen)
    if states is None or not states.is_whole:
        return None
    if (states.rows, states.d_model) != (rows, config.d_model):
        return None
    return torch.frombuffer(bytearray(states.data), dtype=DTYPES[states.format]).view(rows, -1)


def is_usable(states: States | None, position: int, config: ModelConfig) -> bool:
    """Whether a history can be gone on with from its states: they fit and are numbers."""
    flat = tensor_of(states, position, config)
    return flat is not None and bool(torch.isfinite(flat).all())
