"""Phantom gradients and several supervised states, against autograd written out."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.errors import ConfigError
from deq_model.gradient import GradientOptions
from deq_model.model import BlockFunction, DEQLanguageModel, TrainingResult
from deq_model.solvers.options import SolverOptions
from tests.deq_model.problems import (
    CONFIG,
    EXACT,
    MASKED,
    draw_memory,
    draw_tokens,
    generator,
    random_model,
)

FORWARD = SolverOptions(method="anderson", depth=3, tol=1e-7, max_nfe=7)


def gradients(model: DEQLanguageModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


def train(model: DEQLanguageModel, seed: int, **options: object) -> TrainingResult:
    draws = model.draw(streams=2, tgt_len=4, mem_len=3, generator=generator(seed))
    values = {"forward": FORWARD, "backward": MASKED} | options
    return model.train_block(
        draw_tokens(seed, 2, 4),
        draw_tokens(seed + 1, 2, 4),
        draw_memory(seed, 2, 3),
        draws=draws,
        **values,
    )


def written_out(
    model: DEQLanguageModel, seed: int, z: Tensor, *, steps: int, tau: float
) -> tuple[Tensor, Tensor]:
    """The state after damped steps from z, and its loss, by a graph of their own."""
    tokens, targets, memory = (
        draw_tokens(seed, 2, 4),
        draw_tokens(seed + 1, 2, 4),
        draw_memory(seed, 2, 3),
    )
    masks = model.draw(streams=2, tgt_len=4, mem_len=3, generator=generator(seed)).masks
    embedded = model.embedding(tokens)
    injection = model.injection(embedded if masks is None else embedded * masks.embedding)
    f = BlockFunction(model.f.fold(), memory, injection, None if masks is None else masks.function)
    z = z.detach()
    for _ in range(steps):
        z = (1 - tau) * z + tau * f(z)
    return z, model.nll(z if masks is None else z * masks.hidden, targets)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 4),
    tau=st.sampled_from([0.3, 0.8, 1.0]),
    pre_lnorm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_the_phantom_gradient_is_that_of_damped_steps(
    seed: int, steps: int, tau: float, pre_lnorm: bool, dropout: float
) -> None:
    config = dataclasses.replace(CONFIG, pre_lnorm=pre_lnorm, dropout=dropout, dropatt=dropout)
    model = random_model(config, seed, std=0.3).train()
    options = GradientOptions(kind="phantom", steps=steps, tau=tau)
    result = train(model, seed, gradient=options)
    state, nll = written_out(model, seed, result.solution.z_star, steps=steps, tau=tau)
    torch.testing.assert_close(result.nll, nll, rtol=1e-9, atol=1e-9)
    assert torch.equal(result.objective, result.nll)
    torch.testing.assert_close(result.memory.z_hist[:, -4:], state.detach(), rtol=1e-9, atol=1e-9)
    found, expected = gradients(model, result.nll.mean()), gradients(model, nll.mean())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert result.gradient.solution is None, "a phantom gradient solved something"


def test_many_phantom_steps_are_the_implicit_gradient() -> None:
    model = random_model(CONFIG, 4, std=0.2)
    phantom = GradientOptions(kind="phantom", steps=120, tau=0.9)
    one, other = (
        gradients(model, train(model, 4, forward=MASKED, gradient=g).nll.mean())
        for g in (None, phantom)
    )
    for exact, unrolled in zip(one, other, strict=True):
        assert (exact - unrolled).norm() <= 1e-4 * exact.norm() + 1e-9


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["ift", "phantom"]),
    n_states=st.integers(2, 4),
    gamma=st.sampled_from([0.5, 1.0]),
    max_nfe=st.integers(4, 9),
    whole_block=st.booleans(),
)
def test_earlier_states_add_their_weighted_losses(
    seed: int, kind: str, n_states: int, gamma: float, max_nfe: int, whole_block: bool
) -> None:
    model = random_model(dataclasses.replace(CONFIG, dropout=0.2), seed, std=0.3).train()
    options = GradientOptions(kind=kind, steps=2, tau=0.7, n_states=n_states, gamma=gamma)
    forward = dataclasses.replace(FORWARD, max_nfe=max_nfe)
    shared = {"forward": forward, "whole_block": whole_block}
    alone = train(model, seed, gradient=dataclasses.replace(options, n_states=1), **shared)
    result = train(model, seed, gradient=options, **shared)
    torch.testing.assert_close(result.nll, alone.nll, rtol=0, atol=0)
    objective = alone.nll
    for k in range(n_states - 1):
        budget = -(-max_nfe * (k + 1) // n_states)
        early = train(
            model,
            seed,
            forward=dataclasses.replace(forward, max_nfe=budget),
            whole_block=whole_block,
        ).solution.z_star
        steps, tau = (1, 1.0) if kind == "ift" else (2, 0.7)
        _, nll = written_out(model, seed, early, steps=steps, tau=tau)
        objective = objective + gamma ** (n_states - k - 1) * nll
    torch.testing.assert_close(result.objective, objective, rtol=1e-9, atol=1e-9)
    found, expected = (gradients(model, loss.mean()) for loss in (result.objective, objective))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_states_after_convergence_are_the_fixed_point() -> None:
    model = random_model(CONFIG, 2, std=0.2)
    tokens, memory = draw_tokens(1, 2, 1), draw_memory(1, 2, 3)
    options = GradientOptions(n_states=3, gamma=0.5)
    result = model.train_block(
        tokens, tokens, memory, forward=EXACT, backward=EXACT, gradient=options
    )
    assert result.solution.converged
    torch.testing.assert_close(result.objective, 1.75 * result.nll, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "exact"}, "kind must be ift or phantom, got 'exact'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"n_states": 0}, "n_states must be at least 1, got 0"),
        ({"tau": 0.0}, r"tau must be in \(0, 1\], got 0.0"),
        ({"tau": 1.5}, r"tau must be in \(0, 1\], got 1.5"),
        ({"gamma": float("nan")}, r"gamma must be in \(0, 1\], got nan"),
    ],
)
def test_impossible_options(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        GradientOptions(**values)


def test_more_states_than_calls() -> None:
    with pytest.raises(ConfigError, match=r"^n_states must be at most max_nfe = 7, got 8$"):
        train(random_model(CONFIG, 1), 1, gradient=GradientOptions(n_states=8))
