"""Prepared products: the same numbers as plain ones, to each format's rounding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.function import EquilibriumWeights
from deq_model.products import Format, has_kernel, prepare
from tests.deq_model.problems import generator
from tests.server.engine.helpers import small_model

CPU = torch.device("cpu")
ROUNDING: dict[Format, float] = {
    "float64": 1e-15,
    "float32": 1e-6,
    "float16": 1e-3,
    "bfloat16": 1e-2,
}
MODEL = small_model(seed=1).eval().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    biased=st.booleans(),
    relu=st.booleans(),
    form=st.sampled_from(sorted(ROUNDING)),
)
def test_a_prepared_product_is_the_plain_one(
    rows: int, inputs: int, outputs: int, biased: bool, relu: bool, form: Format
) -> None:
    weight, x = random(outputs, inputs, seed=1), random(rows, inputs, seed=2)
    bias = random(outputs, seed=3) if biased else None
    exact = torch.nn.functional.linear(x, weight, bias)
    with torch.inference_mode():
        found = prepare(weight, bias, form, relu=relu)(x)
    error = (found.double() - (exact.relu() if relu else exact)).abs().max()
    assert float(error) <= ROUNDING[form] * inputs**0.5 * 20


def test_products_say_how_many_bytes_they_read() -> None:
    weight = random(30, 20)
    forms: tuple[Format, ...] = ("float64", "float32", "float16", "bfloat16")
    assert [prepare(weight, None, form).nbytes // 600 for form in forms] == [8, 4, 2, 2]
    assert has_kernel("float32", CPU)


def wide_weights(d_inner: int = 512) -> EquilibriumWeights:
    """Folded weights of a model wide enough for roundings to average out."""
    model = small_model(seed=2, d_model=64, n_head=4, d_head=16, d_inner=d_inner)
    return model.f.fold().detach()
