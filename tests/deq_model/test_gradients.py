"""Gradients through the fixed point, and estimates about its Jacobian.

Where keys are masked f rounds its scores to float32, forwards and backwards. A block of one token
masks nothing, with any memory: there finite differences and gradients are float64 throughout.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.gradient import GradientOptions
from deq_model.implicit import ImplicitGradient
from deq_model.jacobian import frobenius_estimate, spectral_radius
from deq_model.model import BlockFunction, DEQLanguageModel, TrainingResult
from deq_model.solvers.options import SolverOptions, SolverStatus
from tests.deq_model.problems import (
    CONFIG,
    EXACT,
    MASKED,
    draw_memory,
    draw_tokens,
    generator,
    random_model,
)


def gradients(model: DEQLanguageModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    # A tail of the softmax that no target is in takes no part.
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def directional(
    model: DEQLanguageModel, loss: Callable[[], Tensor], direction: dict[str, Tensor], step: float
) -> float:
    """The derivative of ``loss`` by the parameters along ``direction``, by central difference."""

    def moved(by: float) -> float:
        with torch.no_grad():
            for name, part in direction.items():
                model.get_parameter(name).add_(part, alpha=by)
        return float(loss().detach())

    above = moved(step)
    below = moved(-2 * step)
    moved(step)
    return (above - below) / (2 * step)


def directions(model: DEQLanguageModel, seed: int) -> dict[str, Tensor]:
    source = generator(seed)
    return {
        name: torch.randn(p.shape, generator=source, dtype=p.dtype)
        for name, p in model.named_parameters()
    }


NORMS = (
    {},
    {"norm": "none"},
    {"norm": "spectral_norm"},
    {"norm_clip": 0.15},
    {"norm": "spectral_norm", "norm_target": 0.4},
)


# The pre-LN variant is not here: its f takes z up to scale and shift, and adds it unchanged, so
# that J has eigenvalues of exactly 1 and no isolated fixed point to differentiate.
@settings(max_examples=5)
@given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(NORMS),
    mem_len=st.sampled_from([0, 3]),
    tied=st.booleans(),
    dropout=st.sampled_from([{}, {"dropout": 0.3, "dropatt": 0.2}]),
)
def test_implicit_unrolled_and_finite_differences_agree(
    seed: int, norm: dict, mem_len: int, tied: bool, dropout: dict
) -> None:
    """In every parameter of embedding, f and softmax; dropout's masks are those of all calls."""
    config = dataclasses.replace(CONFIG, tie_weights=tied, **norm, **dropout)
    model = random_model(config, seed, std=0.2).train()
    tokens, targets = draw_tokens(seed, 2, 1), draw_tokens(seed + 1, 2, 1)
    memory = draw_memory(seed, 2, mem_len)
    draws = model.draw(streams=2, tgt_len=1, mem_len=mem_len, generator=generator(seed))
    assert (draws.masks is None) == (not dropout)
    weight = torch.tensor([[1.0], [-0.7]], dtype=torch.float64)

    def solved() -> TrainingResult:
        return model.train_block(
            tokens, targets, memory, forward=EXACT, backward=EXACT, draws=draws
        )

    result = solved()
    implicit = gradients(model, (weight * result.nll).sum())
    assert result.solution.converged
    assert result.gradient.solution is not None
    assert result.gradient.solution.converged

    unrolled = model.unroll_block(tokens, targets, memory, depth=150, draws=draws)
    assert (unrolled.f_z - unrolled.z).norm() < 1e-9, "the test's map is no contraction"
    for name, expected in gradients(model, (weight * unrolled.nll).sum()).items():
        error = (implicit[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-5, f"{name}: {error:.1e}"

    direction = directions(model, seed)
    predicted = sum(float((implicit[name] * part).sum()) for name, part in direction.items())
    measured = directional(model, lambda: (weight * solved().nll).sum(), direction, 1e-6)
    assert measured == pytest.approx(predicted, rel=1e-5, abs=1e-7)


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_implicit_and_unrolled_agree_over_a_masked_block(seed: int) -> None:
    model = random_model(CONFIG, seed, std=0.2)
    tokens, targets = draw_tokens(seed, 2, 4), draw_tokens(seed + 1, 2, 4)
    memory = draw_memory(seed, 2, 3)
    result = model.train_block(tokens, targets, memory, forward=MASKED, backward=MASKED)
    implicit = gradients(model, result.nll.mean())
    assert result.solution.converged
    unrolled = model.unroll_block(tokens, targets, memory, depth=200)
    for name, expected in gradients(model, unrolled.nll.mean()).items():
        error = (implicit[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-4, f"{name}: {error:.1e}"


def test_memory_passes_no_gradient_back_but_its_projections_learn() -> None:
    model = random_model(CONFIG, 7, std=0.3)
    first, second = torch.tensor([[1, 7, 15]]), torch.tensor([[2]])
    before = model.train_block(first, first, model.empty_memory(1), forward=MASKED, backward=MASKED)
    assert not before.memory.z_hist.requires_grad
    assert not before.memory.u_hist.requires_grad
    result = model.train_block(second, second, before.memory, forward=EXACT, backward=EXACT)
    found = gradients(model, result.nll.sum())
    rows = found["embedding.tables.0"].abs().sum(1)
    assert rows[2] > 0
    assert (rows[[0, 1, 3, 4, 5]] == 0).all()
    assert (found["embedding.tables.1"] == 0).all()
    assert (found["embedding.tables.2"] == 0).all()

    def loss() -> Tensor:
        block = model.solve_block(second, before.memory, EXACT)
        return model.nll(block.hidden, second).sum()

    # W_k alone, and W_v alone: their products with the memory count, the memory itself is fixed.
    for part in (slice(8, 16), slice(16, 24)):
        direction = torch.zeros_like(found["f.qkv_net.weight_v"])
        direction[part] = directions(model, 3)["f.qkv_net.weight_v"][part]
        predicted = float((direction * found["f.qkv_net.weight_v"]).sum())
        measured = directional(model, loss, {"f.qkv_net.weight_v": direction}, 1e-6)
        assert measured == pytest.approx(predicted, rel=1e-5)
        assert abs(predicted) > 1e-6


def linear_block(seed: int, norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """z ``(2, 3, 4)``, ``f_z`` and the matrix A of ``f(z)_i = A z_i + ½ A z_(i−1)``."""
    source = generator(seed)
    matrix = torch.randn(4, 4, generator=source, dtype=torch.float64)
    matrix = norm * matrix / torch.linalg.matrix_norm(matrix, ord=2)
    z = torch.randn(2, 3, 4, generator=source, dtype=torch.float64, requires_grad=True)
    earlier = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
    return z, (z + 0.5 * earlier) @ matrix.T, matrix


def test_the_backward_system_is_solved_for_every_position() -> None:
    z, f_z, matrix = linear_block(1, 0.8)
    gradient = ImplicitGradient(z, EXACT)
    attached = gradient.attach(f_z)
    assert torch.equal(attached, f_z)
    assert gradient.solution is None
    grad = torch.randn(2, 3, 4, generator=generator(2), dtype=torch.float64)
    (found,) = torch.autograd.grad(attached, f_z, grad)
    below = torch.diag(torch.ones(2).double(), -1)
    whole = torch.kron(torch.eye(3).double() + 0.5 * below, matrix)
    inverse = torch.linalg.inv(torch.eye(12).double() - whole)
    expected = (grad.view(2, 12) @ inverse).view(2, 3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert gradient.solution is not None
    assert gradient.solution.converged
    assert 2 <= gradient.solution.nfe <= 60


def test_a_backward_budget_is_kept_and_reported() -> None:
    z, f_z, _ = linear_block(1, 0.8)
    gradient = ImplicitGradient(z, SolverOptions(tol=1e-9, max_nfe=2))
    torch.autograd.grad(gradient.attach(f_z).sum(), f_z)
    assert gradient.solution is not None
    assert gradient.solution.nfe == 2
    assert (gradient.solution.status == SolverStatus.MAX_NFE).all()


def test_a_backward_system_that_is_never_finite_is_told_and_gives_zeros() -> None:
    z, f_z, _ = linear_block(1, 0.8)
    gradient = ImplicitGradient(z, EXACT)
    grad = torch.ones(2, 3, 4, dtype=torch.float64)
    grad[1] = math.nan
    (found,) = torch.autograd.grad(gradient.attach(f_z), f_z, grad)
    assert gradient.solution is not None
    assert (gradient.solution.status[0] == SolverStatus.CONVERGED).all()
    assert (gradient.solution.status[1] == SolverStatus.NONFINITE).all()
    assert gradient.solution.residual[1].isinf().all()
    assert (found[1] == 0).all()
    assert (found[0] != 0).any()


def test_nothing_is_attached_where_no_gradient_is_wanted() -> None:
    z = torch.ones(1, 1, 2)
    gradient = ImplicitGradient(z, EXACT)
    assert not gradient.attach(z * 2).requires_grad


def test_the_jacobian_term_is_the_norm_of_a_random_product() -> None:
    z, f_z, _ = linear_block(3, 1.5)
    estimate = frobenius_estimate(f_z, z, generator=generator(5))
    v = torch.empty_like(z).normal_(generator=generator(5))
    (product,) = torch.autograd.grad(f_z, z, v)
    torch.testing.assert_close(estimate, product.square().sum() / 24)


def test_the_jacobian_term_has_the_right_mean() -> None:
    z, f_z, matrix = linear_block(4, 1.5)
    source = generator(6)
    found = torch.stack([frobenius_estimate(f_z, z, generator=source) for _ in range(2000)])
    # Three positions have A on the diagonal, two have A/2 beside it; per channel of 12.
    exact = matrix.square().sum() * (3 + 2 / 4) / 12
    error = (found.mean() - exact).abs()
    assert error < 4 * found.std() / math.sqrt(2000)


@settings(max_examples=4)
@given(seed=st.integers(0, 1000), pre_lnorm=st.booleans())
def test_the_jacobian_terms_gradient(seed: int, pre_lnorm: bool) -> None:
    """Against finite differences, z* held fixed."""
    model = random_model(dataclasses.replace(CONFIG, pre_lnorm=pre_lnorm), seed, std=0.3)
    tokens, memory = draw_tokens(seed, 2, 1), draw_memory(seed, 2, 3)
    z = torch.randn(2, 1, 8, generator=generator(seed), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        f_z = BlockFunction(model.f.fold(), memory, model.inject(tokens))(z)
        return frobenius_estimate(f_z, z, generator=generator(seed))

    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    direction = directions(model, seed)
    predicted = sum(
        float((part * direction[name]).sum())
        for name, part in zip(names, found, strict=True)
        if part is not None
    )
    measured = directional(model, loss, direction, 1e-6)
    assert measured == pytest.approx(predicted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("gradient", [GradientOptions(), GradientOptions(kind="phantom", steps=2)])
def test_the_power_method_leaves_the_graph_of_training_as_it_was(
    gradient: GradientOptions,
) -> None:
    model = random_model(CONFIG, 3, std=0.2)
    tokens, memory = draw_tokens(1, 2, 1), draw_memory(1, 2, 3)
    found, kept = [], []
    for look in (False, True):
        result = model.train_block(
            tokens, tokens, memory, forward=EXACT, backward=EXACT, gradient=gradient
        )
        if look:
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
            ):
                radius = spectral_radius(result.f_z, result.z, steps=60, generator=generator(1))
            assert not radius.requires_grad
            for sample in range(2):
                jacobian = [
                    torch.autograd.grad(channel, result.z, retain_graph=True)[0][sample, 0]
                    for channel in result.f_z[sample, 0]
                ]
                largest = torch.linalg.eigvals(torch.stack(jacobian)).abs().max()
                torch.testing.assert_close(radius[sample], largest, rtol=0.15, atol=0)
        found.append(gradients(model, result.nll.mean()))
    assert not kept, "the power method saved tensors"
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_products_in_bfloat16_give_gradients_in_the_parameters_dtype() -> None:
    model = random_model(CONFIG, 5, std=0.2).float()
    tokens, targets = draw_tokens(1, 2, 4), draw_tokens(2, 2, 4)
    found = {}
    for dtype in (None, torch.bfloat16):
        result = model.train_block(
            tokens,
            targets,
            model.empty_memory(2),
            forward=SolverOptions(tol=1e-2, max_nfe=60),
            backward=SolverOptions(tol=1e-2, max_nfe=60),
            matmul_dtype=dtype,
        )
        assert result.solution.z_star.dtype == torch.float32
        found[dtype] = gradients(model, result.nll.mean())
    assert all(part.dtype == torch.float32 for part in found[torch.bfloat16].values())
    exact, rounded = (
        torch.cat([part.flatten() for part in found[dtype].values()])
        for dtype in (None, torch.bfloat16)
    )
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98
