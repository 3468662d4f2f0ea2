"""Fits: what a map can learn it learns, and what is chosen by is not fitted on."""

import pytest
import torch
from torch import Tensor

from deq_model.warm_start import WarmStart
from tests.server.engine.helpers import small_model
from training.calibration.fit import fit_linear, fit_network, start_error
from training.calibration.samples import Samples, even_streams, samples_of
from training.errors import DataError

DIM, N = 4, 3000


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(seed: int, *, bent: bool) -> Samples:
    """Samples of a known map, the inputs of very different sizes."""
    injections = drawn(50, 3 * DIM, seed=0) * torch.logspace(-2, 2, 3 * DIM) + 3
    token = torch.randint(0, 50, (N,), generator=torch.Generator().manual_seed(seed))
    previous = drawn(N, DIM, seed=seed)
    plain = (injections[token] - 3) / torch.logspace(-2, 2, 3 * DIM)
    z = torch.cat([plain, previous], dim=1) @ drawn(4 * DIM, DIM, seed=1) + 0.5
    return Samples(
        token=token, previous=previous, z_star=z.abs() if bent else z, injections=injections
    )


def test_a_linear_map_is_found() -> None:
    warm_start = fit_linear(made(1, bent=False), made(2, bent=False))
    assert warm_start.kind == "linear"
    assert start_error(warm_start, made(3, bent=False)) < 0.02


def test_a_bent_map_needs_a_network() -> None:
    fitted, tuning, other = (made(seed, bent=True) for seed in (1, 2, 3))
    linear = start_error(fit_linear(fitted, tuning), other)
    network = fit_network(fitted, tuning, hidden=256, epochs=40, seed=0, layer_norm=False)
    assert start_error(network, other) < 0.6 * linear
    again = fit_network(fitted, tuning, hidden=256, epochs=40, seed=0, layer_norm=False)
    torch.testing.assert_close(again.tensors, network.tensors, rtol=0, atol=0)


def test_the_error_is_relative() -> None:
    samples = made(1, bent=False)
    zeros = WarmStart(
        from_injection=torch.zeros(DIM, 3 * DIM),
        from_previous=torch.zeros(DIM, DIM),
        bias=torch.zeros(DIM),
    )
    assert start_error(zeros, samples) == pytest.approx(1.0)
    assert start_error(None, samples) == 1.0


def test_samples_know_what_was_before() -> None:
    model = small_model().float().requires_grad_(False)
    tokens = torch.tensor([[0, 3, 3], [0, 5, 1], [0, 7, 3]])
    z_star = drawn(3, 3, 16, seed=0)
    fitted, tuning = samples_of(model, tokens, z_star, tuning_every=2)
    assert (len(fitted), len(tuning)) == (6, 3)
    torch.testing.assert_close(tuning.previous[1:], z_star[1, :-1])
    torch.testing.assert_close(fitted.previous[[0, 3]], torch.zeros(2, 16))
    injection, _, z = next(tuning.batches(10))
    torch.testing.assert_close(injection, model.inject(tokens[1]))
    torch.testing.assert_close(z, z_star[1])


def test_pieces_are_spread_over_the_text() -> None:
    ids = torch.arange(1, 1001, dtype=torch.int32)
    found = even_streams(ids, tokens=128, streams=4, eos_id=0, name="data x")
    assert found.shape == (4, 33)
    assert found[:, 0].tolist() == [0, 0, 0, 0]
    assert found[:, 1].tolist() == [1, 251, 501, 751]
    assert even_streams(ids[:70], tokens=999, streams=9, eos_id=0, name="x").shape == (2, 36)
    with pytest.raises(DataError, match="data x must have at least 64 tokens, got 63"):
        even_streams(ids[:63], tokens=128, streams=4, eos_id=0, name="data x")
