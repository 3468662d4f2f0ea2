"""Prepared products: the same numbers as plain ones, to each format's rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.adaptive_softmax import AdaptiveLogSoftmax
from deq_model.block import BlockFunction
from deq_model.feed_forward import Int8FeedForward, PreparedFeedForward, has_int8
from deq_model.function import EquilibriumWeights
from deq_model.inference import InferenceFunction
from deq_model.prepared_softmax import PreparedLogSoftmax
from deq_model.products import Format, _biased_relu, has_kernel, prepare
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


@pytest.mark.skipif(not has_int8("cpu"), reason="this CPU has no 8-bit products")
def test_the_feed_forward_in_8_bits_is_off_by_a_few_per_cent() -> None:
    weights = wide_weights()
    rough, exact = Int8FeedForward(weights), PreparedFeedForward(weights, "float64")
    assert rough.nbytes == 2 * 64 * 512
    for rows in (1, 3, 64):
        x = torch.nn.functional.layer_norm(random(rows, 64, seed=rows), (64,))
        assert 1e-4 < relative(rough(x), exact(x)) < 0.04
        assert rough(x).dtype == x.dtype


@pytest.mark.skipif(not has_int8("cpu"), reason="this CPU has no 8-bit products")
def test_8_bits_meet_inputs_larger_than_any_before() -> None:
    weights = wide_weights()
    rough, exact = Int8FeedForward(weights), PreparedFeedForward(weights, "float64")
    for scale in (1e-3, 1.0, 40.0, 1.0):
        x = scale * random(4, 64)
        # The scale of the activations never shrinks: after large ones small ones are rougher.
        assert relative(rough(x), exact(x)) < 0.5
    assert relative(rough(40.0 * x), exact(40.0 * x)) < 0.04
    zero = rough(torch.zeros(2, 64))
    assert relative(zero, exact(torch.zeros(2, 64)).double()) < 0.1


@pytest.mark.skipif(not has_int8("cpu"), reason="this CPU has no 8-bit products")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_8_bits_of_what_is_not_finite_are_no_number(value: float) -> None:
    x = random(3, 64)
    x[1, 2] = value
    assert Int8FeedForward(wide_weights())(x).isnan().all()


def test_no_device_but_a_cpu_has_8_bits() -> None:
    assert not has_int8("cuda")


@pytest.mark.parametrize("pre_lnorm", [False, True])
@pytest.mark.parametrize("local_size", [0, 4])
def test_the_parts_of_f_make_f(pre_lnorm: bool, local_size: int) -> None:
    """With constants multiplied out, and attention written out here."""
    model = small_model(seed=4, pre_lnorm=pre_lnorm, local_size=local_size).eval()
    config, weights = model.config, model.f.fold().detach()
    n = config.klen
    z, injection = random(n, 16), random(n, 48, seed=1)
    f = InferenceFunction(weights, "float64", distances=n)
    query, key, value = f.channels(z, f.fold_injection(injection))
    delta = torch.arange(n)[:, None] - torch.arange(n)
    seen = (delta >= 0) & (delta < config.attention_span)
    index = torch.where(seen, delta, f.hidden).expand(config.n_head, n, n)
    scores = f.by_distance(query).gather(2, index)
    scores = scores + torch.einsum("qhd,khd->hqk", query, key)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
    ours = f.finish(mixed, z, f.feed_forward)
    theirs = BlockFunction(weights, model.empty_memory(1), injection[None])(z[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # scores masked in float32


@pytest.mark.parametrize("form", ["float64", "float32", "float16"])
@pytest.mark.parametrize("changes", [{}, {"cutoffs": ()}, {"d_embed": 8}])
def test_the_prepared_softmax_is_the_softmax(form: Format, changes: dict[str, object]) -> None:
    model = small_model(seed=5, **changes).eval().requires_grad_(False)
    assert isinstance(model.softmax, AdaptiveLogSoftmax)
    prepared = PreparedLogSoftmax(model.softmax, form)
    hidden = random(7, 16)
    exact = model.softmax.log_prob(hidden)
    bound = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2}[form]
    assert float((prepared.log_prob(hidden).double() - exact).abs().max()) < bound
    targets = torch.tensor([0, 9, 10, 23, 24, 39, 1])
    found = prepared.target_logprob(hidden, targets).double()
    assert float((found - exact.gather(1, targets[:, None])[:, 0]).abs().max()) < bound


def test_a_relu_within_the_product_is_one_behind_it() -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(12, 8), torch.randn(12)
    behind = torch.nn.functional.linear(x, weight, bias).relu()
    torch.testing.assert_close(_biased_relu(x, weight, bias), behind)
