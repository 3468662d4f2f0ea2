"""The optimisers that options name: each is the rule it says, with its own knobs."""

from typing import Any

import pytest
import torch

from training.optimiser import clip_gradient, make_optimiser, set_rate
from training.options.optimiser import OptimiserOptions


def moved(gradients: list[float], **values: Any) -> list[float]:
    """Where a parameter that starts at 1 is after each gradient."""
    parameter = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimiser = make_optimiser([parameter], OptimiserOptions(lr=0.1, **values))
    places = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        places.append(parameter.item())
    return places


def test_sgd_has_momentum() -> None:
    assert moved([1.0, 1.0], method="sgd") == pytest.approx([0.9, 0.8])
    assert moved([1.0, 1.0], method="sgd", momentum=0.5) == pytest.approx([0.9, 0.75])


def test_adagrad_slows_down() -> None:
    places = moved([3.0, 4.0], method="adagrad", eps=1e-12)
    assert places == pytest.approx([0.9, 0.9 - 0.1 * 4 / 5])


def test_rmsprop_has_memory_and_momentum() -> None:
    first = 0.1 * 2 / 1.0  # √(0.75·0 + 0.25·2²) = 1
    assert moved([2.0], method="rmsprop", beta2=0.75, eps=1e-12) == pytest.approx([1 - first])
    plain = moved([2.0, 0.0], method="rmsprop", beta2=0.75)
    heavy = moved([2.0, 0.0], method="rmsprop", beta2=0.75, momentum=0.5)
    assert plain[1] == plain[0]
    assert heavy[1] == pytest.approx(heavy[0] - 0.5 * first)


def test_adam_steps_by_the_rate_whatever_the_scale() -> None:
    assert moved([1e-3, 1e-3], method="adam", eps=1e-20) == pytest.approx([0.9, 0.8])
    assert moved([1.0, -1.0], method="adam", beta1=0.0) == pytest.approx([0.9, 1.0], rel=1e-6)


def test_weight_decay_is_in_the_gradient_but_for_adamw() -> None:
    assert moved([0.0], method="sgd", weight_decay=0.5) == pytest.approx([0.95])
    assert moved([0.0], method="adamw", weight_decay=0.5) == pytest.approx([0.95])
    assert moved([0.0], method="adam", weight_decay=0.5) == pytest.approx([0.9])
    for method in ("adagrad", "rmsprop"):
        assert moved([0.0], method=method, weight_decay=0.5)[0] < 0.96


@pytest.mark.parametrize("method", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
def test_the_rate_can_be_set(method: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(()))
    optimiser = make_optimiser([parameter], OptimiserOptions(method=method))  # type: ignore[arg-type]
    set_rate(optimiser, 0.0)
    parameter.grad = torch.ones(())
    optimiser.step()
    assert parameter.item() == 1.0


@pytest.mark.parametrize(("bound", "expected"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_the_gradient_is_clipped_to_the_bound(bound: float, expected: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradient([parameter], bound)) == pytest.approx(5.0)
    assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-4)
