"""The power method on Jacobians whose eigenvalues are known."""

import math

import pytest
import torch
from torch import Tensor

from deq_model.errors import ConfigError
from deq_model.jacobian import spectral_radius
from tests.deq_model.problems import generator


def linear_maps(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """z and f_z of maps ``A_b z``, one sample each: ``(B, 1, D)``."""
    z = torch.ones(*matrices.shape[:2], dtype=torch.float64)[:, None].requires_grad_()
    return z, torch.einsum("bij,blj->bli", matrices, z)


def test_the_power_method_finds_a_real_dominant_eigenvalue() -> None:
    source = generator(1)
    basis = torch.linalg.qr(torch.randn(2, 5, 5, generator=source, dtype=torch.float64)).Q
    values = torch.tensor([[-3.0, 1.0, 0.5, 0.1, 0.0], [0.7, 0.3, 0.2, 0.1, -0.1]]).double()
    z, f_z = linear_maps(basis @ torch.diag_embed(values) @ basis.mT)
    radius = spectral_radius(f_z, z, steps=60, generator=source)
    torch.testing.assert_close(radius, torch.tensor([3.0, 0.7]).double(), rtol=1e-9, atol=0)


def test_the_power_method_and_a_complex_pair() -> None:
    """The vector turns for ever: the mean growth nears the modulus as 1/steps, single steps do not.

    The pair is seen from a skew basis, where a turn stretches and shrinks the vector.
    """
    turn, modulus = 0.9, 0.8
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    block = torch.zeros(3, 3, dtype=torch.float64)
    block[:2, :2], block[2, 2] = modulus * rotation, 0.5
    skew = torch.tensor([[1.0, 0.9, 0.2], [0.0, 0.3, 0.1], [0.0, 0.0, 1.0]]).double()
    matrix = skew @ block @ torch.linalg.inv(skew)
    eigenvalues = torch.linalg.eigvals(matrix)
    largest = eigenvalues.abs().max()
    assert (eigenvalues.imag.abs() > 0.1).sum() == 2
    torch.testing.assert_close(largest.item(), modulus)
    z, f_z = linear_maps(matrix[None])
    short = [
        abs(spectral_radius(f_z, z, steps=2, generator=generator(seed)).item() - modulus)
        for seed in range(8)
    ]
    assert max(short) > 0.2
    for steps in (50, 200, 800):
        for seed in range(3):
            found = spectral_radius(f_z, z, steps=steps, generator=generator(seed)).item()
            assert abs(found - modulus) < 6 / steps


def test_the_power_method_where_nothing_is_left() -> None:
    nilpotent = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()
    z, f_z = linear_maps(torch.stack([torch.zeros(2, 2).double(), nilpotent]))
    radius = spectral_radius(f_z, z, steps=8, generator=generator(0))
    assert (radius == 0).all()
    with pytest.raises(ConfigError, match=r"^steps must be at least 2, got 1$"):
        spectral_radius(f_z, z, steps=1)
