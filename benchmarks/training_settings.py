"""The ways of solving that the benchmark of training compares."""

import math
from dataclasses import dataclass

import torch

from deq_model.solvers.options import SolverOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way of solving, ours or the baseline's.

    Attributes:
        name: short, for tables and flags.
        what: in a few words.
        forward: solver of the fixed point.
        backward: solver of the gradient.
        whole_block: a sample's block is one vector, in both solves.
        matmul_dtype: of the matrix products of f; None for float32.
    """

    name: str
    what: str
    forward: SolverOptions
    backward: SolverOptions
    whole_block: bool = False
    matmul_dtype: torch.dtype | None = None


_PUBLISHED = SolverOptions(method="broyden", tol=1e-3, max_nfe=35, depth=35, restart=math.inf)
_TOKENS = SolverOptions(method="broyden", tol=1e-3, max_nfe=35)
_LOOSE = SolverOptions(method="broyden", tol=2e-2, max_nfe=20, depth=20)
_LOOSE_BACK = SolverOptions(method="broyden", tol=1e-1, max_nfe=12, depth=12)
_RECIPE = SolverOptions(method="anderson", tol=1e-2, max_nfe=12, depth=4)
_RECIPE_BACK = SolverOptions(method="anderson", tol=5e-2, max_nfe=8, depth=4)

BASELINE = "baseline"
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            name=BASELINE,
            what="whole-block Broyden, 1e-3, 35 calls, both ways",
            forward=_PUBLISHED,
            backward=_PUBLISHED,
            whole_block=True,
        ),
        Setting(
            name="tokens",
            what="Broyden per token, 1e-3, 35 calls, both ways",
            forward=_TOKENS,
            backward=_TOKENS,
        ),
        Setting(
            name="published",
            what="as the baseline: whole-block Broyden, 1e-3, 35 calls, both ways",
            forward=_PUBLISHED,
            backward=_PUBLISHED,
            whole_block=True,
        ),
        Setting(
            name="recipe",
            what="Anderson per token as in the bundled recipes: 1e-2, 12 calls; 5e-2, 8 back",
            forward=_RECIPE,
            backward=_RECIPE_BACK,
        ),
        Setting(
            name="recipe-bf16",
            what="the same, bfloat16 products",
            forward=_RECIPE,
            backward=_RECIPE_BACK,
            matmul_dtype=torch.bfloat16,
        ),
        Setting(
            name="loose",
            what="whole-block Broyden, 2e-2, 20 calls; 1e-1, 12 back",
            forward=_LOOSE,
            backward=_LOOSE_BACK,
            whole_block=True,
        ),
        Setting(
            name="loose-bf16",
            what="the same, bfloat16 products",
            forward=_LOOSE,
            backward=_LOOSE_BACK,
            whole_block=True,
            matmul_dtype=torch.bfloat16,
        ),
    )
}
"""By name; the baseline is computed by ``training.py`` itself, the others by ``deq_model``."""
