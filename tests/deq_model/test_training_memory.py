"""What a step keeps for its backward pass: the same, however long the solver works."""

import pytest
import torch
from torch import Tensor

from deq_model.gradient import GradientOptions
from deq_model.model import DEQLanguageModel, TrainingResult
from deq_model.solvers.options import SolverOptions
from tests.deq_model.problems import CONFIG, draw_tokens, random_model


def trained(
    model: DEQLanguageModel, max_nfe: int, dtype: torch.dtype | None, gradient: GradientOptions
) -> tuple[TrainingResult, int]:
    """A block whose solver uses its budget up, and the bytes that its graph keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # and so the storage, whose address is its name here

    options = SolverOptions(tol=1e-12, max_nfe=max_nfe)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model.train_block(
            draw_tokens(1, 2, 4),
            draw_tokens(2, 2, 4),
            model.empty_memory(2),
            forward=options,
            backward=options,
            matmul_dtype=dtype,
            gradient=gradient,
        )
    return result, sum(kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "gradient",
    [
        GradientOptions(),
        GradientOptions(kind="phantom", steps=3),
        GradientOptions(n_states=3, gamma=0.5),
    ],
    ids=["ift", "phantom", "states"],
)
def test_activation_memory_does_not_grow_with_the_solver(
    dtype: torch.dtype | None, gradient: GradientOptions
) -> None:
    model = random_model(CONFIG, 1, std=0.3).float()
    found = {}
    for max_nfe in (5, 10, 20, 40):
        result, found[max_nfe] = trained(model, max_nfe, dtype, gradient)
        assert result.solution.nfe == max_nfe
    assert len(set(found.values())) == 1, found


def test_every_unrolled_step_is_kept() -> None:
    """The measurement sees what the other test says is not there."""
    model = random_model(CONFIG, 1, std=0.3).float()
    sizes = [
        trained(model, 5, None, GradientOptions(kind="phantom", steps=steps))[1]
        for steps in (1, 2, 3)
    ]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 2000


def test_bfloat16_products_keep_less() -> None:
    model = random_model(CONFIG, 1, std=0.3).float()
    single, half = (
        trained(model, 5, dtype, GradientOptions(kind="phantom", steps=9))[1]
        for dtype in (None, torch.bfloat16)
    )
    assert half < single
