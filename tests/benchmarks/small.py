"""The published shapes in small."""

from dataclasses import replace

from deq_model.config import PRESETS

SMALL = replace(
    PRESETS["model-ift"],
    n_token=400,
    d_model=32,
    d_embed=32,
    n_head=4,
    d_head=8,
    d_inner=64,
    cutoffs=(50, 100, 250),
    div_val=2,
    tgt_len=12,
    mem_len=12,
)
