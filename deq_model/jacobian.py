"""Estimates about the Jacobian J of f at a fixed point (arXiv 2106.14342)."""

import torch
from torch import Tensor

from deq_model.errors import ConfigError


def frobenius_estimate(
    f_z: Tensor,
    z: Tensor,
    *,
    v: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hutchinson's estimate of ``‖J‖_F² / (B·D·L)``: ``‖vᵀJ‖² / (B·D·L)``, v standard normal.

    Args:
        f_z: ``(B, L, D)``, computed from z with its graph.
        z: ``(B, L, D)`` requiring a gradient.
        v: ``(B, L, D)`` standard normal, such as ``Draws.jacobian``; None draws one.
        generator: source of v where it is drawn, on z's device.

    Returns:
        A scalar that can be differentiated in the parameters of f (z* itself held fixed). The mean
        over equal parts of a batch is the whole's.
    """
    if v is None:
        v = torch.empty_like(f_z).normal_(generator=generator)
    (product,) = torch.autograd.grad(f_z, z, v, create_graph=True)
    return product.square().sum() / z.numel()


def spectral_radius(
    f_z: Tensor,
    z: Tensor,
    *,
    steps: int,
    v: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The power method on Jᵀ, per sample: an estimate of the largest ``|λ|`` of J.

    Returns the growth of the vector over the last half of the steps, as a geometric mean. Where
    the dominant eigenvalue is real and alone it converges to its modulus. Where the dominant
    eigenvalues are a complex pair the vector turns instead of settling: the growth of single steps
    goes up and down around the modulus for ever, and only its mean over many steps tends to it,
    with an error that falls as 1/steps.

    Args:
        f_z: ``(B, L, D)``, computed from z with its graph.
        z: ``(B, L, D)`` requiring a gradient.
        steps: products with Jᵀ; at least 2.
        v: ``(B, L, D)`` to begin with, such as ``Draws.spectral``; None draws one.
        generator: source of the first vector where it is drawn, on z's device.

    Returns:
        ``(B,)``, detached. The graph of ``f_z`` stays as it was, and nothing is added to it: to be
        called before a backward pass that frees it.
    """
    if steps < 2:
        raise ConfigError(f"steps must be at least 2, got {steps}")
    if v is None:
        v = torch.empty_like(f_z).normal_(generator=generator)
    tiny = torch.finfo(v.dtype).tiny  # where Jᵀ takes v to zero it stays there: the radius is 0
    log_growth = []
    for _ in range(steps):
        v = v / v.flatten(1).norm(dim=1).clamp(min=tiny)[:, None, None]
        (v,) = torch.autograd.grad(f_z, z, v, retain_graph=True)
        log_growth.append(v.flatten(1).norm(dim=1).log())
    return torch.stack(log_growth[steps // 2 :]).mean(0).exp()
